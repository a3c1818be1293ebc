"""What both papers print on COCO and ADE20K: all rows of Han et al. 2022, Tables 3 and 10, and of
Zhou et al. 2023, Tables 9 and 10.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedRow:
    """A row of a table.

    Attributes:
        preset: Our network of that name, or empty.
        params_m: Parameters in millions, of the whole detector or segmenter.
        flops_g: As the paper counts them, or None.
        ap_box: In percent, on COCO's validation images; so are the others of AP.
        miou: In percent, on ADE20K's validation images.
        scales: Of mIoU: ``ss`` for one, ``ms`` for several with mirror images.
    """

    paper: str
    table: str
    head: str
    schedule: str
    backbone: str
    preset: str
    pretrained: str
    params_m: float
    flops_g: float | None
    ap_box: float | None
    ap_box50: float | None
    ap_box75: float | None
    ap_mask: float | None
    miou: float | None
    scales: str

    @property
    def result(self) -> str:
        """Its result in words."""
        if self.miou is not None:
            return f"mIoU {self.miou:g} ({self.scales})"
        return f"AP box {self.ap_box:g}, mask {self.ap_mask:g}"


def published_rows(preset: str, head: str) -> tuple[PublishedRow, ...]:
    """Return what the papers print of a preset in a head."""
    return tuple(row for row in PUBLISHED_DENSE if (row.preset, row.head) == (preset, head))


def _read(line: str) -> PublishedRow:
    words = line.split(";")
    paper, table, head, schedule, backbone, preset, pretrained = words[:7]
    numbers = [float(word) if word else None for word in words[7:14]]
    assert numbers[0] is not None
    return PublishedRow(
        paper=_PAPERS[paper],
        table=f"Table {table}",
        head=head,
        schedule=schedule,
        backbone=backbone,
        preset=preset,
        pretrained=pretrained,
        params_m=numbers[0],
        flops_g=numbers[1],
        ap_box=numbers[2],
        ap_box50=numbers[3],
        ap_box75=numbers[4],
        ap_mask=numbers[5],
        miou=numbers[6],
        scales=words[14],
    )


_PAPERS = {"han": "Han et al. 2022", "zhou": "Zhou et al. 2023"}
# In the order of the fields.
_TABLES = """
han;3;cascade_mask_rcnn;3x;Swin-T;swin_t;IN1K;86;747;50.5;69.3;54.9;43.7;;
han;3;cascade_mask_rcnn;3x;DW-Conv-T;dwconv_t;IN1K;82;730;49.9;68.6;54.3;43.4;;
han;3;cascade_mask_rcnn;3x;D-DW-Conv-T;d_dwconv_t;IN1K;108;730;50.5;69.5;54.6;43.7;;
han;3;cascade_mask_rcnn;3x;I-D-DW-Conv-T;id_dwconv_t;IN1K;84;741;50.8;69.5;55.3;44.0;;
han;3;cascade_mask_rcnn;3x;Swin-B;swin_b;IN1K;145;986;51.9;70.9;56.5;45.0;;
han;3;cascade_mask_rcnn;3x;DW-Conv-B;dwconv_b;IN1K;132;924;51.1;69.6;55.4;44.2;;
han;3;cascade_mask_rcnn;3x;D-DW-Conv-B;d_dwconv_b;IN1K;219;924;51.2;70.0;55.4;44.4;;
han;3;cascade_mask_rcnn;3x;I-D-DW-Conv-B;id_dwconv_b;IN1K;137;948;51.8;70.3;56.1;44.8;;
han;3;upernet;160k;Swin-T;swin_t;IN1K;60;947;;;;;44.5;ss
han;3;upernet;160k;DW-Conv-T;dwconv_t;IN1K;56;928;;;;;45.5;ss
han;3;upernet;160k;D-DW-Conv-T;d_dwconv_t;IN1K;83;928;;;;;45.7;ss
han;3;upernet;160k;I-D-DW-Conv-T;id_dwconv_t;IN1K;58;939;;;;;46.2;ss
han;3;upernet;160k;Swin-B;swin_b;IN1K;121;1192;;;;;48.1;ss
han;3;upernet;160k;DW-Conv-B;dwconv_b;IN1K;108;1129;;;;;48.3;ss
han;3;upernet;160k, ending at 1e-6;DW-Conv-B;dwconv_b;IN1K;108;1129;;;;;48.9;ss
han;3;upernet;160k;D-DW-Conv-B;d_dwconv_b;IN1K;195;1129;;;;;48.0;ss
han;3;upernet;160k;I-D-DW-Conv-B;id_dwconv_b;IN1K;114;1153;;;;;47.8;ss
han;10;upernet;160k;Swin-B;swin_b;IN22K;121;1192;;;;;49.4;ss
han;10;upernet;160k;DW-Conv-B;dwconv_b;IN22K;108;1129;;;;;50.1;ss
han;10;upernet;160k;D-DW-Conv-B;d_dwconv_b;IN22K;195;1129;;;;;49.6;ss
zhou;9;mask_rcnn;1x;PVT-M;;IN1K;64;;42.0;;;39.0;;
zhou;9;mask_rcnn;3x;PVT-M;;IN1K;64;;44.2;;;40.5;;
zhou;9;mask_rcnn;1x;Focal-T;;IN1K;49;291;44.8;;;41.0;;
zhou;9;mask_rcnn;3x;Focal-T;;IN1K;49;291;47.2;;;42.7;;
zhou;9;mask_rcnn;1x;ViL-S;;IN1K;45;218;44.9;;;41.0;;
zhou;9;mask_rcnn;3x;ViL-S;;IN1K;45;218;47.1;;;42.7;;
zhou;9;mask_rcnn;1x;Swin-T;swin_t;IN1K;48;267;43.7;;;39.8;;
zhou;9;mask_rcnn;3x;Swin-T;swin_t;IN1K;48;267;46.0;;;41.6;;
zhou;9;mask_rcnn;1x;ELSA-Swin-T;elsa_swin_t;IN1K;49;269;45.6;;;41.1;;
zhou;9;mask_rcnn;3x;ELSA-Swin-T;elsa_swin_t;IN1K;49;269;47.5;;;42.7;;
zhou;9;mask_rcnn;1x;PVT-L;;IN1K;81;;42.9;;;39.5;;
zhou;9;mask_rcnn;3x;PVT-L;;IN1K;81;;44.5;;;40.7;;
zhou;9;mask_rcnn;1x;Focal-S;;IN1K;71;401;47.4;;;42.8;;
zhou;9;mask_rcnn;3x;Focal-S;;IN1K;71;401;48.8;;;43.8;;
zhou;9;mask_rcnn;1x;ViL-M;;IN1K;60;294;47.6;;;43.0;;
zhou;9;mask_rcnn;3x;ViL-M;;IN1K;60;294;48.9;;;44.2;;
zhou;9;mask_rcnn;1x;Swin-S;swin_s;IN1K;69;354;46.5;;;42.1;;
zhou;9;mask_rcnn;3x;Swin-S;swin_s;IN1K;69;354;48.5;;;43.3;;
zhou;9;mask_rcnn;1x;ELSA-Swin-S;elsa_swin_s;IN1K;72;367;48.3;;;43.0;;
zhou;9;mask_rcnn;3x;ELSA-Swin-S;elsa_swin_s;IN1K;72;367;49.2;;;43.6;;
zhou;9;mask_rcnn;1x;ELSA-Swin-B;elsa_swin_b;IN1K;112;508;48.8;;;43.1;;
zhou;9;mask_rcnn;3x;ELSA-Swin-B;elsa_swin_b;IN1K;112;508;49.6;;;43.9;;
zhou;9;cascade_mask_rcnn;1x;Swin-T;swin_t;IN1K;86;745;48.1;;;41.7;;
zhou;9;cascade_mask_rcnn;3x;Swin-T;swin_t;IN1K;86;745;50.5;;;43.7;;
zhou;9;cascade_mask_rcnn;1x;ELSA-Swin-T;elsa_swin_t;IN1K;86;748;49.8;;;43.0;;
zhou;9;cascade_mask_rcnn;3x;ELSA-Swin-T;elsa_swin_t;IN1K;86;748;51.1;;;44.2;;
zhou;9;cascade_mask_rcnn;1x;Swin-S;swin_s;IN1K;107;838;50.3;;;43.4;;
zhou;9;cascade_mask_rcnn;3x;Swin-S;swin_s;IN1K;107;838;51.8;;;44.7;;
zhou;9;cascade_mask_rcnn;1x;ELSA-Swin-S;elsa_swin_s;IN1K;110;846;51.6;;;44.4;;
zhou;9;cascade_mask_rcnn;3x;ELSA-Swin-S;elsa_swin_s;IN1K;110;846;52.3;;;45.2;;
zhou;9;cascade_mask_rcnn;3x;Swin-B;swin_b;IN1K;145;982;51.9;;;45.0;;
zhou;9;cascade_mask_rcnn;1x;ELSA-Swin-B;elsa_swin_b;IN1K;150;987;52.0;;;44.7;;
zhou;9;cascade_mask_rcnn;3x;ELSA-Swin-B;elsa_swin_b;IN1K;150;987;52.6;;;45.4;;
zhou;10;upernet;160k;Swin-T;swin_t;IN1K;60;945;;;;;45.8;ms
zhou;10;upernet;160k;Focal-T;;IN1K;62;998;;;;;47.0;ms
zhou;10;upernet;160k;Twins-SVT-S;twins_svt_s;IN1K;54;;;;;;47.1;ms
zhou;10;upernet;160k;ELSA-Swin-T;elsa_swin_t;IN1K;61;946;;;;;47.7;ms
zhou;10;upernet;160k;Swin-S;swin_s;IN1K;81;1038;;;;;49.5;ms
zhou;10;upernet;160k;Focal-S;;IN1K;85;1130;;;;;50.0;ms
zhou;10;upernet;160k;Twins-SVT-B;twins_svt_b;IN1K;89;;;;;;48.9;ms
zhou;10;upernet;160k;ELSA-Swin-S;elsa_swin_s;IN1K;85;1046;;;;;50.3;ms
zhou;10;upernet;160k;Swin-B;swin_b;IN1K;121;1188;;;;;49.7;ms
zhou;10;upernet;160k;Focal-B;;IN1K;126;1354;;;;;50.5;ms
zhou;10;upernet;160k;Twins-SVT-L;twins_svt_l;IN1K;133;;;;;;50.2;ms
zhou;10;upernet;160k;ELSA-Swin-B;elsa_swin_b;IN1K;126;1193;;;;;50.6;ms
"""

PUBLISHED_DENSE = tuple(_read(line) for line in _TABLES.split("\n") if line)
