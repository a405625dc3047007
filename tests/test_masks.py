"""Mask IoU: polygons, boxes to pixels, SAM through transformers, and the second pass over a run."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from eval_harness import masks, records
from eval_harness.errors import UserError
from eval_harness.images import ImageError, encode
from eval_harness.masks import ForegroundSegmenter, SamSegmenter, mask_iou, pixel_box, polygon_mask, reasonseg_mask
from eval_harness.records import BenchmarkResult, Decoding, GroupResult, Item, RunRecord, Sample

W, H = 100, 50


def rectangle(x1, y1, x2, y2, label="target") -> dict:
    """Pixels x1..x2 by y1..y2, both ends included."""
    return {"label": label, "points": [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]}


class Filled:
    """The mask of a box is the box; remembers what it was asked."""

    name = "filled"

    def __init__(self):
        self.asked = []

    def __call__(self, image, boxes):
        self.asked.append(list(boxes))
        found = []
        for x1, y1, x2, y2 in boxes:
            mask = np.zeros((image.height, image.width), dtype=bool)
            mask[y1:y2, x1:x2] = True
            found.append(mask)
        return found


def item(polygons, item_id="0", size=(W, H), group="test") -> Item:
    context = {"width": size[0], "height": size[1], "polygons": polygons, "gold_box": None}
    return Item(item_id=item_id, prompt="?", gold="x", images=(f"{item_id}.png",), group=group, context=context)


def sample(completion, item_id="0", number=0) -> Sample:
    return Sample(
        item_id=item_id,
        sample=number,
        seed=0,
        status="scored" if completion is not None else "failed",
        completion=completion,
        finish_reason="stop",
        num_prompt_tokens=1,
        num_completion_tokens=1,
        correct=False,
        correct_strict=False,
        extracted=None,
        reason="mismatch",
        gold_fallback=False,
    )


def marks(polygons, *completions, image=True, size=(W, H), segmenter=None):
    shown = Image.new("RGB", size, "white") if image else None
    samples = [sample(text, number=i) for i, text in enumerate(completions)]
    found = masks.marks_of(item(polygons), samples, shown, segmenter or Filled())
    assert [m.sample for m in found] == list(range(len(completions)))
    return [(m.mask_iou, m.mask_iou_strict) for m in found]


# geometry ----------------------------------------------------------------------------------------------------------


def test_polygon_mask_has_its_outline():
    mask = polygon_mask(rectangle(10, 20, 19, 24)["points"], W, H)
    assert mask.shape == (H, W) and mask.dtype == bool
    assert mask.sum() == 50 and mask[20:25, 10:20].all()
    assert polygon_mask([[2.9, 3.9]], W, H)[3, 2]  # points are cut to whole pixels
    triangle = polygon_mask([[0, 0], [9, 0], [0, 9]], W, H)
    assert triangle.sum() == 55 and triangle[0, 9] and triangle[9, 0] and not triangle[9, 9]
    assert polygon_mask([[1, 1], [40, 7], [3, 5]], W, H).sum() == 114  # as OpenCV counts
    beyond = polygon_mask(rectangle(-5, -5, 4, 4)["points"], W, H)
    assert beyond.sum() == 25


def test_reasonseg_paints_small_over_large():
    outer, hole, island = rectangle(0, 0, 49, 49), rectangle(10, 10, 29, 29, "Ignore area"), rectangle(15, 15, 19, 19)
    flag = rectangle(0, 0, 99, 49, "FLAG")
    for order in ([outer, hole, island, flag], [flag, island, hole, outer]):
        target, ignored = reasonseg_mask(order, W, H)
        assert target.sum() == 2500 - 400 + 25 and ignored.sum() == 400 - 25
        assert target[17, 17] and ignored[12, 12] and not (target & ignored).any()
    assert not reasonseg_mask([flag], W, H)[0].any()


def test_mask_iou_by_hand():
    one, two = np.zeros((2, 10, 10), dtype=bool)
    one[:, :6], two[:, 4:] = True, True
    assert mask_iou(one, two) == pytest.approx(20 / 100)
    assert mask_iou(one, one) == pytest.approx(1, abs=1e-6)
    assert mask_iou(one, one) < 1  # the release's 1e-6
    assert mask_iou(np.zeros((2, 2), dtype=bool), np.zeros((2, 2), dtype=bool)) == 0


def test_boxes_are_cut_to_whole_pixels():
    assert pixel_box((0, 0, 1000, 1000), W, H) == (0, 0, W, H)
    assert pixel_box((199, 199, 555, 999), W, H) == (19, 9, 55, 49)
    assert pixel_box((0, 0, 1e99, 5), W, H) == (0, 0, 1000, 0)


# marks of one image ------------------------------------------------------------------------------------------------

LEFT, RIGHT = rectangle(0, 0, 19, 49), rectangle(40, 0, 59, 49)
BOX_LEFT, BOX_BOTH = "<answer>(0,0),(200,1000)</answer>", "<answer>(0,0),(600,1000)</answer>"


def test_published_is_the_first_polygon_and_strict_all_targets():
    (left, both) = marks([LEFT, RIGHT], BOX_LEFT, BOX_BOTH)
    assert left == pytest.approx((1.0, 0.5))
    assert both == pytest.approx((1 / 3, 2 / 3))


def test_ignored_areas_do_not_count():
    """The box covers target and ignored area: the latter is neither right nor wrong."""
    middle = rectangle(20, 0, 39, 49, "ignore")
    assert marks([LEFT, middle], "(0,0),(400,1000)") == [pytest.approx((0.5, 1.0))]
    assert marks([middle, LEFT], "(0,0),(200,1000)") == [pytest.approx((0.0, 1.0))]


def test_the_first_box_and_the_answered_box():
    text = "<think>maybe (0,0),(200,1000)</think><answer>(400,0),(600,1000)</answer>"
    segmenter = Filled()
    found = marks([LEFT], text, text, "(0,0),(200,1000)", segmenter=segmenter)
    assert found == [pytest.approx((1.0, 0.0))] * 2 + [pytest.approx((1.0, 1.0))]
    assert segmenter.asked == [[(0, 0, 20, 50), (40, 0, 60, 50)]]  # one call an image, every box once


def test_no_box_is_zero_and_no_gold_is_skipped():
    assert marks([LEFT], "nothing", None) == [(0.0, 0.0), (0.0, 0.0)]
    inverted = "<answer>(200,1000),(0,0)</answer>"
    assert marks([LEFT], inverted) == [(0.0, 0.0)]
    assert marks([], BOX_LEFT) == [(None, None)]
    assert marks([LEFT], BOX_LEFT, size=(W, H + 1)) == [(None, None)]  # another size than the annotation's
    assert marks([rectangle(0, 0, 19, 49, "ignore")], BOX_LEFT) == [(pytest.approx(1.0), None)]
    assert marks([LEFT], BOX_LEFT, image=False) == [(0.0, 0.0)]
    segmenter = Filled()
    marks([LEFT], "nothing", segmenter=segmenter)
    assert segmenter.asked == []


# segmenters --------------------------------------------------------------------------------------------------------


def test_foreground_is_what_the_box_holds():
    image = Image.new("RGB", (W, H), (250, 250, 248))
    ImageDraw.Draw(image).rectangle((10, 10, 29, 29), fill=(240, 120, 190))
    inside, half, nothing, beyond = ForegroundSegmenter()(
        image, [(0, 0, 50, 50), (20, 0, 50, 50), (60, 0, 99, 49), (-1000, -1000, 1000, 1000)]
    )
    assert inside.sum() == 400 and half.sum() == 200 and not nothing.any() and beyond.sum() == 400
    assert inside[10, 10] and not inside[9, 9]


@pytest.fixture(scope="module")
def tiny_sam(tmp_path_factory):
    """A random SAM of some thousand parameters for images of 64 pixels."""
    import torch
    from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor

    torch.manual_seed(0)
    vision = {"hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 64, "patch_size": 16, "window_size": 2, "global_attn_indexes": [1], "mlp_dim": 64}
    prompt = {"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4}
    decoder = {"hidden_size": 16, "mlp_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = SamConfig(
        vision_config=vision | {"num_pos_feats": 8},
        prompt_encoder_config=prompt,
        mask_decoder_config=decoder | {"iou_head_hidden_dim": 16},
    )
    processor = SamImageProcessor(
        size={"longest_edge": 64},
        pad_size={"height": 64, "width": 64},
        mask_size={"longest_edge": 16},
        mask_pad_size={"height": 16, "width": 16},
    )
    folder = tmp_path_factory.mktemp("sam")
    SamModel(config).save_pretrained(folder)
    SamProcessor(processor).save_pretrained(folder)
    return folder


def test_sam_gives_the_models_own_masks(tiny_sam, monkeypatch):
    """One mask a box, the same as transformers' plain call on each box alone; the image is embedded once."""
    import torch
    from transformers import SamModel, SamProcessor

    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (H, W, 3), dtype=np.uint8))
    boxes = [(5, 5, 40, 40), (50, 10, 80, 45), (0, 0, W, H)]
    segmenter = SamSegmenter(str(tiny_sam), device="cpu")
    embedded = []
    original = segmenter._model.get_image_embeddings
    monkeypatch.setattr(
        segmenter._model, "get_image_embeddings", lambda *a, **k: embedded.append(1) or original(*a, **k)
    )
    found = segmenter(image, boxes)
    assert len(embedded) == 1 and segmenter(image, []) == []
    assert [mask.shape for mask in found] == [(H, W)] * 3 and all(mask.dtype == bool for mask in found)
    assert len({mask.sum() for mask in found}) == 3  # the box matters
    model, processor = SamModel.from_pretrained(tiny_sam).eval(), SamProcessor.from_pretrained(tiny_sam)
    for box, mask in zip(boxes, found, strict=True):
        inputs = processor(image, input_boxes=[[[float(v) for v in box]]], return_tensors="pt")
        inputs["input_boxes"] = inputs["input_boxes"].to(torch.float32)
        with torch.inference_mode():
            out = model(pixel_values=inputs["pixel_values"], input_boxes=inputs["input_boxes"], multimask_output=False)
        (expected,) = processor.image_processor.post_process_masks(
            out.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"]
        )
        assert (mask == expected[0, 0].numpy()).mean() > 0.999
    assert marks([LEFT], BOX_LEFT, "(0,0),(99999999,1)", segmenter=segmenter)[0][0] >= 0


def test_a_wrong_sam_is_named(tmp_path, random_checkpoint):
    for model in (tmp_path, random_checkpoint):
        with pytest.raises(UserError, match="--sam .*: not a SAM checkpoint.*facebook/sam-vit-huge"):
            SamSegmenter(str(model))


# the pass over a run -----------------------------------------------------------------------------------------------


def estimate() -> dict:
    return {"mean": 0.5, "se": 0.1, "low": 0.3, "high": 0.7, "num_items": 4, "num_samples": 4}


@pytest.fixture
def run_folder(tmp_path):
    """A finished run over four images, two completions each; the third has no polygon, the fourth no image."""
    items = [item([LEFT, RIGHT], "0", group="val"), item([LEFT], "1"), item([], "2"), item([LEFT], "3")]
    texts = {"0": (BOX_LEFT, BOX_BOTH), "1": (BOX_LEFT, "nothing"), "2": (BOX_LEFT,) * 2, "3": (BOX_LEFT,) * 2}
    samples = [sample(text, item_id, i) for item_id, pair in texts.items() for i, text in enumerate(pair)]
    wrong = estimate() | {"mean": 0.0}
    counts = {"num_items": 4, "asked": 8, "scored": 8, "failed": 0, "score": wrong, "score_strict": wrong}
    zeros = dict.fromkeys(("num_gold_fallback", "num_truncated", "num_no_answer", "num_timeout"), 0)
    decoding = Decoding(temperature=0, top_p=1, top_k=0, max_new_tokens=8, samples=2, seed=1, system_prompt=None)
    groups = {name: GroupResult(**counts, extra={"other": estimate()}) for name in ("val", "test")}
    result = {"version": 1, "source": "drawn", "prompts_hash": "0", "decoding": decoding, "mean_completion_tokens": 8}
    boxes = BenchmarkResult(**result, **counts, **zeros, groups=groups, flags={"several_boxes": 1})
    plain = BenchmarkResult(**result, **counts, **zeros)
    run = RunRecord(
        run_id="r",
        fingerprint="f",
        status="finished",
        created="now",
        finished="now",
        model={},
        engine={"name": "transformers"},
        settings={"limit": None},
        benchmarks={"lisa": boxes, "geoqa": plain},
        average=None,
        timings={},
        environment={},
    )
    folder = tmp_path / "run"
    records.write_json(folder / "run.json", run)
    records.append_lines(folder / "items" / "lisa.jsonl", items)
    records.append_lines(folder / "samples" / "lisa.jsonl", samples)
    records.append_lines(folder / "items" / "geoqa.jsonl", [Item(item_id="0", prompt="?", gold="1")])
    records.append_lines(folder / "samples" / "geoqa.jsonl", samples)
    return folder


def read_white(name, of_item):
    assert name == "lisa"
    if of_item.item_id == "3":
        raise ImageError("3.png: gone")
    return [encode(Image.new("RGB", (W, H), "white"))]


def test_estimates_join_the_record(run_folder):
    before = records.read_run(run_folder)
    written = masks.add_masks(run_folder, Filled(), read_white, progress=False)
    run = records.read_run(run_folder)
    assert run.model_dump_json() == written.model_dump_json()
    val, test = (run.benchmarks["lisa"].groups[g].extra for g in ("val", "test"))
    assert val["mask_iou"]["mean"] == pytest.approx((1 + 1 / 3) / 2)
    assert val["mask_iou_strict"]["mean"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert test["mask_iou"]["mean"] == pytest.approx((1 / 2 + 0) / 2)  # image 1, and image 3 which cannot be read
    assert (test["mask_iou"]["num_items"], test["mask_iou"]["num_samples"]) == (2, 4)
    assert val["other"] == estimate()  # what was there stays
    lisa = run.benchmarks["lisa"]
    assert lisa.extra["mask_iou"]["mean"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert lisa.flags == {"several_boxes": 1, "no_gold_mask": 2}  # both completions on image 2
    assert run.settings == {"limit": None, "segmenter": "filled"}
    assert run.benchmarks["geoqa"] == before.benchmarks["geoqa"] and lisa.score == before.benchmarks["lisa"].score
    lines = records.read_lines(run_folder / "masks" / "lisa.jsonl", masks.MaskMark)
    assert [(m.item_id, m.sample) for m in lines] == [(i, s) for i in "0123" for s in (0, 1)]


def test_a_killed_pass_goes_on_where_it_was(run_folder):
    def killed(name, of_item):
        if of_item.item_id == "2":
            raise KeyboardInterrupt
        return read_white(name, of_item)

    with pytest.raises(KeyboardInterrupt):
        masks.add_masks(run_folder, Filled(), killed, progress=False)
    path = run_folder / "masks" / "lisa.jsonl"
    path.write_bytes(path.read_bytes()[:-10])  # torn in the middle of image 1's second line
    assert records.read_run(run_folder).benchmarks["lisa"].extra == {}
    segmenter, seen = Filled(), []
    masks.add_masks(
        run_folder, segmenter, lambda name, i: seen.append(i.item_id) or read_white(name, i), progress=False
    )
    assert seen == ["1", "2", "3"] and segmenter.asked == []  # image 1 lacked the completion without a box
    lines = records.read_lines(path, masks.MaskMark)
    assert len(lines) == len({(m.item_id, m.sample) for m in lines}) == 8
    once = records.read_run(run_folder)
    masks.add_masks(run_folder, Filled(), lambda name, i: pytest.fail("everything is there"), progress=False)
    assert records.read_run(run_folder).model_dump_json() == once.model_dump_json()
    assert once.benchmarks["lisa"].groups["val"].extra["mask_iou"]["mean"] == pytest.approx(2 / 3)


def test_what_cannot_be_scored_is_refused(run_folder, tmp_path):
    masks.add_masks(run_folder, Filled(), read_white, progress=False)
    with pytest.raises(UserError, match="scored with the masks of filled, this is foreground"):
        masks.add_masks(run_folder, ForegroundSegmenter(), read_white, progress=False)
    with pytest.raises(UserError, match="not a run folder"):
        masks.add_masks(tmp_path / "nowhere", Filled(), read_white)
    assert not (tmp_path / "nowhere").exists()
    run = records.read_run(run_folder)
    records.write_json(
        run_folder / "run.json", run.model_copy(update={"benchmarks": {"geoqa": run.benchmarks["geoqa"]}})
    )
    with pytest.raises(UserError, match="no benchmark with polygons"):
        masks.add_masks(run_folder, Filled(), read_white)
    records.write_json(run_folder / "run.json", run.model_copy(update={"status": "running"}))
    with pytest.raises(UserError, match="not a finished evaluation"):
        masks.add_masks(run_folder, Filled(), read_white)


def test_the_command(run_folder, tmp_path, capsys):
    """Through the benchmark's own image source, on drawings."""
    folder = tmp_path / "images" / "reasonseg"
    folder.mkdir(parents=True)
    drawn = Image.new("RGB", (W, H), "white")
    ImageDraw.Draw(drawn).rectangle((0, 0, 19, 24), fill="blue")  # the upper half of the left polygon
    for name in "012":
        drawn.save(folder / f"{name}.png")
    arguments = [str(run_folder), "--foreground", "--image-root", str(tmp_path / "images")]
    assert masks.main([*arguments, "--data-root", str(tmp_path / "images")]) == 0
    printed = capsys.readouterr().out
    assert "lisa val" in printed and "lisa test" in printed
    extra = records.read_run(run_folder).benchmarks["lisa"].groups["val"].extra
    assert extra["mask_iou"]["mean"] == pytest.approx(0.5)
    assert masks.main([str(tmp_path), "--foreground"]) == 2
    assert "error:" in capsys.readouterr().err
