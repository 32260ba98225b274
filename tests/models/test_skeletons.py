"""Joints by their names: how far annotators are apart on each."""

from models.coco import OKS_SIGMAS
from models.evaluation import CROWDPOSE_JOINTS, CROWDPOSE_SIGMAS
from models.skeletons import COCO, MPII, Skeleton


def test_cocos_and_crowdposes_spreads_are_their_own() -> None:
    assert COCO.sigmas == OKS_SIGMAS
    assert Skeleton(CROWDPOSE_JOINTS).sigmas == CROWDPOSE_SIGMAS


def test_mpii_takes_cocos_for_what_both_have_and_like_values_for_the_rest() -> None:
    spread = dict(zip(COCO.names, COCO.sigmas, strict=True))
    for name, sigma in zip(MPII.names, MPII.sigmas, strict=True):
        if name in spread:
            assert sigma == spread.pop(name)
        else:
            assert min(OKS_SIGMAS) < sigma <= max(OKS_SIGMAS)
    # What is left are COCO's joints of the face.
    assert set(spread) == set(COCO.names[:5])


def test_an_unknown_joint_has_a_spread_too() -> None:
    assert min(OKS_SIGMAS) < Skeleton(("tail",)).sigmas[0] < max(OKS_SIGMAS)
