"""A detector of torchvision that is small enough for tests."""

from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign


def tiny(num_classes: int = 4) -> FasterRCNN:
    """Returns a Faster R-CNN over three convolutions, for images of 32 pixels."""
    backbone = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 16, 3, padding=1)
    )
    backbone.out_channels = 16
    return FasterRCNN(
        backbone,
        rpn_anchor_generator=AnchorGenerator(((8, 16),), ((1.0,),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 3, 1),
        box_head=nn.Sequential(nn.Flatten(), nn.Linear(16 * 9, 24), nn.ReLU()),
        box_predictor=_Predictor(24, num_classes),
        min_size=32,
        max_size=32,
        box_detections_per_img=10,
        rpn_pre_nms_top_n_train=50,
        rpn_post_nms_top_n_train=30,
        rpn_pre_nms_top_n_test=50,
        rpn_post_nms_top_n_test=30,
    )


class _Predictor(nn.Module):
    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.classes, self.boxes = nn.Linear(width, num_classes), nn.Linear(width, 4 * num_classes)

    def forward(self, x):
        return self.classes(x), self.boxes(x)
