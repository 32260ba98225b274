"""Who is who from one image to the next, and joints that do not tremble.

The tracks are those of roboflow's `trackers`, which `posemux[video]` brings: ByteTrack (Zhang et
al., ECCV 2022), which also follows people whom the detector has become unsure of, as BoT-SORT
(Aharon et al., 2022) refines it, without its camera motion, which costs more than the networks.
Boxes are compared by generalised IoU (Rezatofighi et al., CVPR 2019), which tells boxes apart that
do not meet: at few frames a second people walk out of their boxes. docs/video.md compares.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import supervision
from trackers import BoTSORTTracker, GIoU

from app.pipeline import Options, Poses
from app.smoothing import OneEuroFilter

#: Somebody unseen for longer comes back as somebody else.
LOST_SECONDS = 2.0
#: Whoever is followed already is believed at this part of the score that is asked of others.
_DOUBTFUL = 1 / 3
#: The least likeness, from -1 to 1, of a box and where it is expected; that of a doubtful one.
_LIKE, _DOUBTFUL_LIKE = -0.3, 0.5
#: The library counts time in these.
_FRAMES_PER_SECOND = 30.0


class _Likeness(GIoU):
    """Generalised IoU, at its least where two boxes are too unlike to be one person's.

    The library pairs all boxes so that their likeness is the most in sum, and takes those pairs
    apart afterwards that are too unlike: for their sake another person may have got a wrong box.
    """

    def _compute(
        self, boxes_1: npt.NDArray[np.float64], boxes_2: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        likeness = super()._compute(boxes_1, boxes_2)
        return np.where(likeness < _LIKE, -1.0, likeness)


class Tracker:
    """Follows the people of one video or stream; not for several threads at once.

    Args:
        min_score: the least detection score of people who are not followed yet.
        smooth: whether joints of those who are followed are smoothed.
    """

    def __init__(self, min_score: float, smooth: bool) -> None:
        self._min_score = min_score
        # It wants its first likeness from 0 to 1.
        like = (_LIKE + 1) / 2
        self._tracks = BoTSORTTracker(
            lost_track_buffer=round(LOST_SECONDS * _FRAMES_PER_SECOND),
            frame_rate=_FRAMES_PER_SECOND,
            track_activation_threshold=1,
            high_conf_det_threshold=1,
            minimum_iou_threshold_first_assoc=like,
            minimum_iou_threshold_second_assoc=_DOUBTFUL_LIKE,
            minimum_iou_threshold_unconfirmed_assoc=like,
            enable_cmc=False,
            iou=_Likeness(),
        )
        self._smooth = OneEuroFilter() if smooth else None

    @staticmethod
    def asking(options: Options) -> Options:
        """What to ask of the pipeline for images whose poses a tracker is to get."""
        return replace(options, min_score=options.min_score * _DOUBTFUL)

    def __call__(self, poses: Poses, seconds: float) -> Poses:
        """The people of the next image, and who they are.

        Args:
            poses: estimated as `asking` says.
            seconds: when the image was taken; later than the last one.

        Returns:
            Those of them who are followed, or sure enough, with `track_ids`.
        """
        sure = poses.box_scores >= self._min_score
        found = supervision.Detections(
            xyxy=poses.boxes.astype(np.float64),
            # Sure or doubtful: it would multiply likeness by the score itself, and so follow those
            # best whom the detector likes best.
            confidence=np.where(sure, 1.0, 0.5),
            data={"person": np.arange(len(sure))},
        )
        tracked = self._tracks.update(found, timestamp=seconds)
        ids = np.zeros(len(sure), np.int64)
        if tracked.tracker_id is not None and len(tracked):
            ids[tracked.data["person"]] = tracked.tracker_id + 1
        kept = sure | (ids > 0)
        poses = Poses(
            poses.model,
            poses.boxes[kept],
            poses.scores[kept],
            poses.keypoints[kept],
            poses.timings,
            poses.box_scores[kept],
            track_ids=ids[kept],
        )
        return poses if self._smooth is None else _smoothed(poses, self._smooth, seconds)


def _smoothed(poses: Poses, smooth: OneEuroFilter, seconds: float) -> Poses:
    assert poses.track_ids is not None
    followed = np.flatnonzero(poses.track_ids)
    sides = (poses.boxes[followed, 2:] - poses.boxes[followed, :2]).astype(np.float64)
    keypoints = poses.keypoints.copy()
    keypoints[followed, :, :2] = smooth(
        poses.track_ids[followed].tolist(),
        keypoints[followed, :, :2].astype(np.float64),
        np.sqrt(np.maximum(sides, 1).prod(-1)),
        seconds,
    )
    return replace(poses, keypoints=keypoints)
