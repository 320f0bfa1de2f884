"""The label store: one part's arrays in one Zarr group, as docs/format.md describes it.

Labels go in as float32 maps with a validity mask and come back within half a quantisation step of each view's own range;
invalid pixels come back invalid. A lost file or chunk, and a flipped bit, raises when it is read, and never becomes a depth
or a pixel without one. Nothing in a part is executed, followed out of it, or believed about its size. Whoever writes a part
gets the size of each file from the writing itself: nothing is learned by looking into the folder.
"""

import warnings

from stages.label_store.format import (
    AnyLabel,
    AnyLabelT,
    AnyPatch,
    CodedLabel,
    CodedPatch,
    ContextPicture,
    ImageLabels,
    Label,
    PatchLabel,
    QuantisedLabel,
    decode_label,
    decode_picture,
    encode_picture,
    left_right,
    only_where,
    quantise,
)
from stages.label_store.keys import AmbiguousKeyError, ImageId, NoLabelsError
from stages.label_store.opening import (
    CodedImage,
    DamagedPartError,
    LabelColumn,
    OpenRun,
    PhotographLabels,
    PhotographPictures,
    PictureColumn,
    Status,
    open_run,
    refuse_other_files,
)
from stages.label_store.packing import PackedLabel
from stages.label_store.reader import LabelReader, PictureReader
from stages.label_store.writer import LabelWriter, Row, write_labels, write_pictures

# PCodec is registered by numcodecs and readable wherever numcodecs is; docs/format.md names it.
warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr", category=UserWarning)

__all__ = [
    "AmbiguousKeyError",
    "AnyLabel",
    "AnyLabelT",
    "AnyPatch",
    "CodedImage",
    "CodedLabel",
    "CodedPatch",
    "ContextPicture",
    "DamagedPartError",
    "ImageId",
    "ImageLabels",
    "Label",
    "LabelColumn",
    "LabelReader",
    "LabelWriter",
    "NoLabelsError",
    "OpenRun",
    "PackedLabel",
    "PatchLabel",
    "PhotographLabels",
    "PhotographPictures",
    "PictureColumn",
    "PictureReader",
    "QuantisedLabel",
    "Row",
    "Status",
    "decode_label",
    "decode_picture",
    "encode_picture",
    "left_right",
    "only_where",
    "open_run",
    "quantise",
    "refuse_other_files",
    "write_labels",
    "write_pictures",
]
