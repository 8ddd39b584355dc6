"""Face network: a frame in, its faces and a vector for each out (T2VLAD's face expert). The entry, no torch.

dlib (King 2009) with the models that the package face_recognition_models carries, so nothing is downloaded: a
detector, five landmarks that turn the face upright, and a ResNet whose 128 values are close for one person. MMT's own
face features were 512-d (128-d for LSMDC).
"""

from __future__ import annotations

from errors import UserError

from ..weights import Weights, add_weights
from .registry import register_network
from .spec import NetworkSpec, box_outputs

__all__ = ["DETECTOR", "LANDMARKS", "RECOGNITION", "face"]

MAX_FACES = 30  # face tokens of a video in T2VLAD
DETECTORS = ("hog", "cnn")


def _weights(tag: str, filename: str, digest: str, dataset: str, classes: int, **about) -> Weights:
    return Weights(
        name=f"face.{tag}",
        architecture="face",
        filename=filename,
        package="face_recognition_models",
        package_path=f"models/{filename}",
        hash=f"sha256:{digest}",
        licence="CC0-1.0",
        trained_on=({"dataset": dataset, "split": "train", "classes": classes},),
        **about,
    )


RECOGNITION = _weights(
    "dlib_resnet_v1", "dlib_face_recognition_resnet_model_v1.dat",
    "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
    "facescrub, vgg_face and pictures from the web", 7485, accuracy={"lfw pairs": 99.38},
)  # fmt: skip
LANDMARKS = _weights(
    "dlib_landmarks_5", "shape_predictor_5_face_landmarks.dat",
    "c4b1e9804792707d3a405c2c16a80a20269e6675021f64a41d30fffafbc41888", "dlib_faces_5_points", 0,
)  # fmt: skip
DETECTOR = _weights(
    "dlib_cnn_detector", "mmod_human_face_detector.dat",
    "4cb19393e2fbaf2b1609a9319ad5386618c886a6234ec1b971f3e87c85d87fe6", "dlib_face_detection_dataset", 1,
)  # fmt: skip
add_weights(RECOGNITION, LANDMARKS, DETECTOR)


@register_network("face")
def face(
    *,
    detector: str = "hog",
    upsample: int | None = None,
    top: int = MAX_FACES,
    score_threshold: float = 0.0,
    max_side: int = 1280,
    fps: float = 1.0,
    unit_rows: int = 256,
    batch_size: int = 8,
) -> NetworkSpec:
    """Faces of a frame, best first: `roi` (30, 128) their vectors, `boxes`, `scores`, `classes` (all 0), `n_boxes`.

    Args:
        detector: "hog" (dlib's frontal detector: quick, faces that look at the camera) or "cnn" (dlib's MMOD network:
            any pose, some ten times slower on a CPU).
        upsample: times the frame is doubled before the search: 0 finds faces from about 80 pixels ("hog": its window),
            1 from 40, 2 from 20. Default 1 for "hog", 0 for "cnn".
        top: boxes kept a frame; `n_boxes` is their true number.
        score_threshold: detections below it are left out. Scores are the detector's own, not probabilities: those of
            "hog" start at 0 and are seldom above 3, doubtful ones are below 0.3; those of "cnn" lie about 1.
        max_side: frames whose long side is larger are reduced to it for the search alone.
        fps: of the frame grid.
    """
    if detector not in DETECTORS:
        raise UserError(f"face: detector must be one of {', '.join(DETECTORS)}, got {detector!r}")
    upsample = (1 if detector == "hog" else 0) if upsample is None else upsample
    for name, value, least in (("upsample", upsample, 0), ("top", top, 1), ("max_side", max_side, 80)):
        if not isinstance(value, int) or value < least:
            raise UserError(f"face: {name} must be a whole number, at least {least}, got {value!r}")
    return NetworkSpec(
        name="face",
        kind="detector",
        reads="rgb_frame",
        outputs=box_outputs(top, 128),
        builder="extract.networks.face_model:Face",
        family="face",
        layer="fc",
        options={
            "detector": detector,
            "upsample": upsample,
            "top": top,
            "score_threshold": float(score_threshold),
            "max_side": max_side,
        },
        fps=float(fps),
        resize={"mode": "none"},
        mean=(122.782 / 255, 117.001 / 255, 104.298 / 255),  # which dlib subtracts by itself, before / 256
        std=(256 / 255,) * 3,
        unit_rows=unit_rows,
        batch_size=batch_size,
        weights=RECOGNITION.name,
        licence="CC0-1.0 (models), BSL-1.0 (dlib)",
        source="King 2009 (JMLR 10:1755), dlib; models of davisking/dlib-models, package face_recognition_models",
        requires=("dlib", "face_recognition_models"),
    )
