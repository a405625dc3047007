"""The bookkeeping between draws and micro-batches."""

import random

import pytest
import torch
from trl.trainer.utils import RepeatSampler

from gpg_repro.batch import (
    PromptStream,
    collate_completions,
    collate_images,
    copy_row,
    deal,
    reached,
    select_groups,
    select_groups_released,
    split_rows,
)
from gpg_repro.packing import collate_plain

# Prompts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [True, False])
def test_stream_has_the_order_of_trl(shuffle):
    sampler = RepeatSampler(range(11), mini_repeat_count=1, batch_size=4, repeat_count=1, shuffle=shuffle, seed=7)
    expected = [list(sampler) for _ in range(3)]  # one permutation per epoch, the last incomplete chunk left out
    stream = PromptStream(11, 4, seed=7, shuffle=shuffle)
    assert [[*stream.chunk(2 * epoch), *stream.chunk(2 * epoch + 1)] for epoch in range(3)] == expected
    assert PromptStream(11, 4, seed=7, shuffle=shuffle).chunk(5) == expected[2][4:]  # no history needed


def test_stream_refuses_a_training_set_below_one_draw():
    with pytest.raises(ValueError, match="has 3 prompts, but one draw takes 4"):
        PromptStream(3, 4, seed=0)


# Groups -------------------------------------------------------------------------------------------------------------


def test_selection_is_the_pool_then_padding_of_the_last_draw():
    one = select_groups([[False, True, False]])
    assert (one.groups, one.num_valid, one.num_dropped) == ([(0, 0), (0, 1), (0, 2)], 1, 0)
    two = select_groups([[False, True, False, False], [True, False, True, False]])
    assert two.groups == [(0, 1), (1, 0), (1, 2), (1, 1)]
    assert (two.num_valid, two.num_dropped) == (3, 0)
    full = select_groups([[True, True, False], [True, False, True]])
    assert (full.groups, full.num_valid, full.num_dropped) == ([(0, 0), (0, 1), (1, 0)], 3, 1)


def test_released_selection_reproduces_the_undercount():
    """16 processes with one group each: 5 valid, then 5 more of which 3 sit where one was: 7 distinct, not 10."""
    first = [process < 5 for process in range(16)]
    second = [process in (0, 1, 2, 5, 6) for process in range(16)]
    released = select_groups_released([first, second], 16)
    assert (released.num_valid, released.num_dropped) == (7, 3)
    assert len({group for _, group in released.groups}) == 16  # every process fills its own place
    assert [draw for draw, group in released.groups if group in (0, 5, 15)] == [0, 1, 1]  # oldest, own, padding
    paper = select_groups([first, second])
    assert (paper.num_valid, paper.num_dropped) == (10, 0)
    assert (16 / min(16, released.num_valid + released.num_dropped), 16 / released.num_valid) == (1.6, 16 / 7)


def test_released_selection_with_several_groups_per_process():
    flags = [[True, False, False, False], [True, True, False, False]]
    selection = select_groups_released(flags, 2)
    assert selection.groups == [(0, 0), (1, 0), (1, 2), (1, 3)]
    assert (selection.num_valid, selection.num_dropped) == (2, 1)
    with pytest.raises(ValueError, match="3 groups on 2 processes"):
        select_groups_released([[True] * 3], 2)


@pytest.mark.parametrize(
    ("num_valid", "num_groups", "beta_th", "expected"),
    [(6, 10, 0.6, True), (5, 10, 0.6, False), (11, 20, 0.55, True), (10, 10, 1.0, True), (9, 10, 1.0, False)],
)
def test_threshold_is_met_at_equality(num_valid, num_groups, beta_th, expected):
    assert reached(num_valid, num_groups, beta_th) is expected


# Processes and micro-batches ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_deal_evens_out_counts_and_moves_only_the_surplus(seed):
    rng = random.Random(seed)
    num_processes, num_rows = rng.randrange(1, 6), rng.randrange(0, 40)
    owners = sorted(rng.randrange(num_processes) for _ in range(num_rows))
    lengths = [rng.randrange(1, 200) for _ in range(num_rows)]
    targets = deal(lengths, owners, num_processes)
    before = [owners.count(process) for process in range(num_processes)]
    after = [targets.count(process) for process in range(num_processes)]
    assert max(after) - min(after) <= 1
    moved = sum(owner != target for owner, target in zip(owners, targets, strict=True))
    assert moved == sum(max(0, a - b) for a, b in zip(after, before, strict=True))
    assert moved == sum(max(0, b - a) for a, b in zip(after, before, strict=True))
    assert moved <= sum(max(0, b - num_rows // num_processes) for b in before)


def test_deal_evens_out_tokens():
    lengths = [100, 100, 1, 1, 100, 1]
    targets = deal(lengths, [0, 0, 0, 0, 0, 1], 2)
    tokens = [sum(n for n, t in zip(lengths, targets, strict=True) if t == process) for process in (0, 1)]
    assert sorted(tokens) == [102, 201]
    # process 1 has 10 of 22 tokens and lacks a row: the short one makes 11 and 11, a long one would make 20 and 2
    assert deal([10, 1, 1, 10], [0, 0, 0, 1], 2) == [0, 1, 0, 1]
    # of three rows whoever holds them all keeps two: one row moves, whichever process that is
    assert [deal([1, 1, 1], [process] * 3, 2).count(process) for process in (0, 1)] == [2, 2]
    assert deal([5, 5], [0, 1], 2) == [0, 1]


# Rows ---------------------------------------------------------------------------------------------------------------


def make_batch(with_images: bool = False):
    """Four rows; prompts of 1 to 4 tokens padded left, completions of 3, 0, 5 and 2 trained tokens padded right."""
    prompts, completions = [4, 2, 1, 3], [3, 0, 5, 2]
    batch = {
        "prompt_ids": torch.zeros(4, 4, dtype=torch.long),
        "prompt_mask": torch.zeros(4, 4, dtype=torch.long),
        "completion_ids": torch.zeros(4, 6, dtype=torch.long),
        "completion_mask": torch.zeros(4, 6, dtype=torch.long),
        "ref_per_token_logps": torch.randn(4, 6),
        "tool_mask": torch.ones(4, 6, dtype=torch.long),
        "mm_token_type_ids": torch.zeros(4, 10, dtype=torch.long),
        "advantages": torch.randn(4),
        "num_items_in_batch": torch.tensor(10),
    }
    for row, (p, c) in enumerate(zip(prompts, completions, strict=True)):
        batch["prompt_ids"][row, 4 - p :] = torch.arange(1, p + 1) + 10 * row
        batch["prompt_mask"][row, 4 - p :] = 1
        batch["completion_ids"][row, :c] = torch.arange(1, c + 1) + 100 * (row + 1)
        batch["completion_mask"][row, :c] = 1
        batch["tool_mask"][row, c // 2] = 0  # what a tool wrote is not trained on
        batch["mm_token_type_ids"][row, 4 - p] = 1
    if with_images:  # 2, 0, 1 and 1 images of different sizes
        batch["num_images"] = [2, 0, 1, 1]
        batch["image_grid_thw"] = torch.tensor([[1, 2, 2], [1, 2, 4], [1, 4, 4], [1, 2, 2]])
        counts = batch["image_grid_thw"].prod(-1).tolist()
        batch["pixel_values"] = torch.cat([torch.full((n, 3), float(i)) for i, n in enumerate(counts)])
        batch["image_sizes"] = torch.arange(8).view(4, 2)
    return batch


@pytest.mark.parametrize("with_images", [True, False])
def test_splitting_and_collating_is_lossless(with_images):
    """Prompts are padded on the left before, on the right behind their completions afterwards."""
    batch = make_batch(with_images)
    again = collate_plain(split_rows(batch), pad_token_id=0)
    for key in ("completion_ids", "completion_mask"):
        assert torch.equal(again[key], batch[key][:, :5])  # the last column trained nothing
    mask = batch["completion_mask"][:, :5]
    for key in ("ref_per_token_logps", "tool_mask"):
        assert torch.equal(again[key], batch[key][:, :5] * mask)
    inputs, kept = again["inputs"], torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1).bool()
    assert inputs["attention_mask"].tolist() == [[1] * n + [0] * (7 - n) for n in (7, 2, 6, 5)]
    seen = inputs["attention_mask"].bool()
    assert torch.equal(inputs["input_ids"][seen], torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)[kept])
    assert torch.equal(inputs["mm_token_type_ids"][seen], batch["mm_token_type_ids"][kept])
    # Labels are completion tokens, and `places` the predictions of them: row 2 has one prompt token and five others.
    assert inputs["labels"][2].tolist() == [-100, 301, 302, 303, 304, 305, -100]
    assert again["places"][2].tolist() == [2 * 6 + n for n in range(5)] and again["num_tokens"] == 4 * 7
    for key in ("image_grid_thw", "pixel_values", "image_sizes") if with_images else ():
        assert torch.equal(inputs[key], batch[key])
    assert not {"advantages", "num_items_in_batch", "num_images"} & (set(again) | set(inputs))


def test_any_choice_of_rows_takes_its_images_along():
    rows = split_rows(make_batch(with_images=True))
    batch = collate_plain([rows[3], rows[0]], pad_token_id=0)
    inputs = batch["inputs"]
    assert inputs["input_ids"].tolist() == [[31, 32, 33, 401, 402, 0, 0], [1, 2, 3, 4, 101, 102, 103]]
    assert batch["completion_ids"].tolist() == [[401, 402, 0], [101, 102, 103]]
    assert inputs["image_grid_thw"].tolist() == [[1, 2, 2], [1, 2, 2], [1, 2, 4]]
    assert inputs["pixel_values"][:, 0].tolist() == [3.0] * 4 + [0.0] * 4 + [1.0] * 8
    assert inputs["image_sizes"].tolist() == [[6, 7], [0, 1], [2, 3]]
    assert collate_images([rows[0]])["image_grid_thw"].tolist() == [[1, 2, 2], [1, 2, 4]]
    without = collate_plain([rows[1]], pad_token_id=0)
    assert not {"pixel_values", "image_grid_thw"} & set(without["inputs"])
    assert without["completion_ids"].tolist() == [[0]] and without["completion_mask"].tolist() == [[0]]
    assert without["inputs"]["labels"].tolist() == [[-100] * 3]


def test_rows_with_slots_for_different_numbers_of_images_meet():
    """As Idefics has them: [1, images, channels, height, width]. What is filled up is zero."""
    rows = [
        {
            "num_images": n,
            "pixel_values": torch.ones(1, n, 3, 4, n + 3),
            "pixel_attention_mask": torch.ones(1, n, 4, n + 3),
        }
        for n in (1, 2)
    ]
    images = collate_images(rows)
    assert images["pixel_values"].shape == (2, 2, 3, 4, 5) and images["pixel_attention_mask"].shape == (2, 2, 4, 5)
    assert images["pixel_values"].sum(dim=(2, 3, 4)).tolist() == [[3 * 4 * 4, 0], [3 * 4 * 5, 3 * 4 * 5]]
    assert (images["pixel_values"][0, 0, :, :, :4] == 1).all()


def test_weights_are_kept_in_float64():
    row = split_rows(make_batch())[0] | {"loss_weights": 1 / 3, "kl_weights": 0.1}
    batch = collate_completions([row, row], pad_token_id=0)
    assert batch["loss_weights"].dtype == torch.float64 and batch["loss_weights"].tolist() == [1 / 3, 1 / 3]


def test_a_copied_row_frees_its_batch():
    row = split_rows(make_batch())[2]
    assert row["completion_ids"].untyped_storage().nbytes() > 8 * 5  # a view of the batch
    copy = copy_row(row)
    assert copy["completion_ids"].untyped_storage().nbytes() == 8 * 5
    assert all(torch.equal(torch.as_tensor(copy[key]), torch.as_tensor(row[key])) for key in row)
