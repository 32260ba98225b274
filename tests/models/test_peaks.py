import pytest
import torch

from models.peaks import first_peak, softmax_peak


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_the_peak_is_torchs(dtype):
    values = torch.randn(3, 2, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    peaks, places = first_peak(values)
    assert peaks.dtype == dtype
    assert torch.equal(peaks, values.amax(-1))
    assert torch.equal(places, values.double().argmax(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_equal_peaks_the_first_wins(dtype):
    values = torch.zeros(2, 40, dtype=dtype)
    values[0, [7, 33]] = 1
    assert first_peak(values)[1].tolist() == [7, 0]


def test_what_is_no_number_is_the_largest():
    values = torch.zeros(1, 40)
    values[0, 3], values[0, 9] = 5, torch.nan
    peaks, places = first_peak(values)
    assert peaks.isnan().all()
    assert places.tolist() == [9]


def test_any_strides_will_do():
    values = torch.randn(4, 30, 6, generator=torch.Generator().manual_seed(0)).mT
    assert torch.equal(first_peak(values)[1], values.contiguous().argmax(-1))


def test_gradients_reach_the_peak():
    values = torch.tensor([[0.0, 3, 1]], requires_grad=True)
    first_peak(values)[0].sum().backward()
    assert torch.equal(values.grad, torch.tensor([[0.0, 1, 0]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("spread", [0.1, 3, 300])
def test_the_peak_of_a_softmax_is_torchs(dtype, spread):
    logits = spread * torch.randn(3, 50, 2, generator=torch.Generator().manual_seed(0)).mT.to(dtype)
    before = logits.clone()
    peaks, places = softmax_peak(logits)
    expected, expected_places = first_peak(logits.softmax(-1))
    torch.testing.assert_close(peaks, expected, rtol=1e-5, atol=0)
    assert torch.equal(places, expected_places)
    assert torch.equal(logits, before)


def test_nobody_has_no_peak():
    assert [part.shape for part in softmax_peak(torch.empty(0, 17, 40))] == [(0, 17), (0, 17)]


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_a_softmax_of_what_is_no_number_has_no_peak(number):
    logits = torch.zeros(2, 40)
    logits[0, 9] = number
    peaks, places = softmax_peak(logits)
    assert peaks.isnan().tolist() == [True, False]
    assert places[1] == 0


def test_gradients_reach_the_softmax():
    logits = torch.tensor([[0.0, 3, 1]], requires_grad=True)
    softmax_peak(logits)[0].sum().backward()
    assert logits.grad is not None
    assert logits.grad[0, 1] > 0
