import io
import math
import resource
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from isthmus.errors import InputError
from isthmus.models.blocks import conv_norm
from isthmus.models.resnet import BasicBlock
from isthmus.train.augment import Augmentation, Normalization
from isthmus.train.images import (
    SCHEDULES,
    ImageRecipe,
    evaluate_images,
    fast_recipe,
    small_recipe,
    standard_recipe,
    train_images,
)
from isthmus.train.loop import Progress
from isthmus.train.views import layout_of

RECIPE = ImageRecipe(
    epochs=4,
    batch_size=16,
    learning_rate=0.05,
    nesterov=True,
    schedule="one-cycle",
    label_smoothing=0.1,
    augmentation=Augmentation(padding=1, rotation_deg=15),
    channels_last=True,
)


def bars(num=72, seed=0) -> tuple[Tensor, Tensor]:
    """Three classes of noisy images: a bright bar above, in the middle or below."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (num,), generator=generator)
    images = torch.randint(0, 100, (num, 3, 9, 9), dtype=torch.uint8, generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 3 * label : 3 * label + 3] += 120
    return images, labels


def net():
    torch.manual_seed(3)
    head = (nn.Dropout(0.1), nn.AdaptiveAvgPool2d((3, 1)), nn.Flatten(), nn.Linear(24, 3))
    return nn.Sequential(conv_norm(3, 8, 3), BasicBlock(8, 8), *head)


def trained(recipe=RECIPE, *, seed=5, **options):
    model = net()
    record = train_images(model, *bars(), recipe, seed=seed, **options)
    return model, record


def equal(first, second):
    expected = first.state_dict()
    return all(torch.equal(v, expected[k]) for k, v in second.state_dict().items())


class Table(nn.Module):
    """Returns row i of a table for an image of the value i."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, x_BCHW):
        return self.logits[(x_BCHW[:, 0, 0, 0] * 255).round().long()]


def test_training_learns_and_keeps_its_curves():
    model, record = trained(held_out=bars(30, seed=1))
    assert record.phase == "base"
    assert record.epochs == 4
    assert record.losses[-1] < record.losses[0]
    assert len(record.losses) == len(record.learning_rates) == len(record.accuracies) == 4
    assert record.accuracies[-1] > 0.9
    assert evaluate_images(model, *bars(30, seed=1)).top1 == record.accuracies[-1]
    assert not model.training
    assert all(p.is_contiguous() for p in model.parameters())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_same_seed_gives_the_same_bits_and_another_does_not(precision):
    recipe = replace(RECIPE, precision=precision)
    first, record = trained(recipe)
    second, again = trained(recipe, held_out=bars(6, seed=1))  # looking on moves nothing
    other, _ = trained(recipe, seed=6)
    assert equal(first, second)
    assert record.losses == again.losses
    assert not equal(first, other)


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_an_interrupted_training_goes_on_and_ends_with_the_same_bits(
    tmp_path, schedule, precision
):
    recipe = replace(RECIPE, schedule=schedule, precision=precision)
    held_out = bars(6, seed=1)
    whole, expected = trained(recipe, held_out=held_out)

    class StopError(Exception):
        pass

    def interrupt(step, done, total):
        if done == 3:
            raise StopError

    with pytest.raises(StopError):
        trained(
            recipe,
            held_out=held_out,
            progress=Progress(report=interrupt, checkpoints=tmp_path),
        )
    lines = []
    resumed, record = trained(
        recipe,
        held_out=held_out,
        progress=Progress(report=lambda *line: lines.append(line), checkpoints=tmp_path),
    )
    assert [done for _, done, _ in lines] == [3, 4]
    assert equal(whole, resumed)
    assert replace(record, seconds=0.0) == replace(expected, seconds=0.0)


def test_a_state_that_cannot_be_written_leaves_the_one_before(tmp_path):
    whole, _ = trained()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_the_disk(step, done, total):
        if done == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))

    try:
        with pytest.raises(InputError, match=r"state\.ckpt: cannot be written \(File too large\)"):
            trained(progress=Progress(report=fill_the_disk, checkpoints=tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in (tmp_path / "base").iterdir()] == ["state.ckpt"]
    lines = []
    resumed, _ = trained(
        progress=Progress(report=lambda *line: lines.append(line), checkpoints=tmp_path)
    )
    assert [done for _, done, _ in lines] == [3, 4]
    assert equal(whole, resumed)


def test_a_damaged_state_is_one_line_that_says_what_to_do(tmp_path):
    one = replace(RECIPE, epochs=1)
    trained(one, progress=Progress(checkpoints=tmp_path))
    path = tmp_path / "base" / "state.ckpt"
    whole = path.read_bytes()
    torch.save({}, empty := io.BytesIO())
    others = (whole[:1000], whole[:-1000], b"cos\nsystem\n(S'true'\ntR.", empty.getvalue())
    for damaged in (b"", *others):
        path.write_bytes(damaged)
        with pytest.raises(
            InputError, match=r"state\.ckpt: is damaged \(\w+\); delete it"
        ) as caught:
            trained(progress=Progress(checkpoints=tmp_path))
        assert "\n" not in str(caught.value)


def test_training_leaves_torchs_switches_as_they_were():
    torch.use_deterministic_algorithms(mode=False)
    trained(replace(RECIPE, epochs=1))
    assert not torch.are_deterministic_algorithms_enabled()
    switches: Any = torch.utils.deterministic
    assert switches.fill_uninitialized_memory


def test_the_rate_follows_the_schedule():
    rates = {
        schedule: trained(replace(RECIPE, epochs=10, schedule=schedule))[1].learning_rates
        for schedule in SCHEDULES
    }
    # a fifth at 30, 60 and 80 % of ten epochs
    steps = [1, 1, 1, 0.2, 0.2, 0.2, 0.04, 0.04, 0.008, 0.008]
    assert rates["step"] == pytest.approx([0.05 * step for step in steps])
    waves = [(1 + math.cos(math.pi * epoch / 10)) / 2 for epoch in range(10)]
    assert rates["cosine"] == pytest.approx([0.05 * wave for wave in waves])
    one_cycle = rates["one-cycle"]
    assert max(one_cycle) == pytest.approx(0.05, rel=0.05)
    assert one_cycle.index(max(one_cycle)) == 2
    falls = [before - after for before, after in pairwise(one_cycle[2:])]
    assert falls == pytest.approx([falls[0]] * 7, rel=0.05)


def test_precision_and_layout_reach_the_model_and_its_weights_stay_float32():
    seen = set()

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            y = self.net[0](x)
            layout = x.is_contiguous(memory_format=torch.channels_last)
            seen.add((self.training, layout, x.dtype, y.dtype))
            return self.net[1:](y)

    model = Watched()
    train_images(model, *bars(), replace(RECIPE, epochs=1, precision="bf16-mixed"), seed=0)
    in_training = {facts[1:] for facts in seen if facts[0]}
    assert in_training == {(True, torch.float32, torch.bfloat16)}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_norms_and_biases_decay_only_where_the_recipe_says_so():
    class Still(nn.Module):
        """Its scale and its matrix change no output: only decay moves them."""

        def __init__(self):
            super().__init__()
            self.scale, self.matrix = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, 3))
            self.flatten = nn.Flatten()

        def forward(self, x):
            return self.flatten(x)[:, :3] + 0 * self.scale + 0 * self.matrix.sum()

    moved = {}
    for decay_all in (True, False):
        model = Still()
        recipe = replace(RECIPE, epochs=1, weight_decay=0.1, decay_all=decay_all)
        train_images(model, *bars(), recipe, seed=0)
        moved[decay_all] = [bool((p < 1).all()) for p in (model.scale, model.matrix)]
    assert moved == {True: [True, True], False: [False, True]}


def test_images_are_seen_as_the_constants_say_in_training_and_in_judging():
    seen = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(3))

        def forward(self, x):
            seen.append((self.training, float(x.min()), float(x.max())))
            return x.mean((2, 3)) + self.bias

    images = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2).expand(4, 3, 2, 2)
    labels = torch.tensor([0, 1, 2, 0])
    recipe = replace(RECIPE, epochs=1, augmentation=Augmentation(padding=0))
    constants = Normalization(mean=(0.5,), std=(0.25,))
    model = Watched()
    train_images(model, images, labels, recipe, seed=0, normalization=constants)
    evaluate_images(model, images, labels, normalization=constants)
    assert {training for training, *_ in seen} == {True, False}
    assert {tuple(ends) for _, *ends in seen} == {(-2.0, 2.0)}


def test_scores_of_a_hand_worked_case():
    # six classes in the superclasses 0 0 1 1 2 2; four images
    model = Table(
        [
            [9.0, 5.0, 4.0, 3.0, 2.0, 1.0],  # label 0: right
            [9.0, 5.0, 4.0, 3.0, 2.0, 1.0],  # label 1: the right superclass
            [9.0, 5.0, 4.0, 3.0, 2.0, 1.0],  # label 4: among the first five
            [9.0, 5.0, 4.0, 3.0, 2.0, 1.0],  # label 5: the last of six
        ]
    ).train()
    images = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1)
    labels = torch.tensor([0, 1, 4, 5])
    coarse = torch.tensor([0, 0, 1, 1, 2, 2])
    scores = evaluate_images(model, images, labels, coarse, batch_size=3)
    assert (scores.top1, scores.top5, scores.superclass) == (0.25, 0.75, 0.5)
    assert model.training
    assert evaluate_images(model, images, labels).superclass is None


def test_with_fewer_than_five_classes_every_label_is_among_the_first_five():
    model = Table([[1.0, 0.0, 0.0]] * 2)
    images = torch.arange(2, dtype=torch.uint8).view(2, 1, 1, 1)
    scores = evaluate_images(model, images, torch.tensor([0, 2]))
    assert (scores.top1, scores.top5) == (0.5, 1.0)


def test_the_recipes_are_what_their_names_say():
    standard, fast, small = standard_recipe(), fast_recipe(16), small_recipe()
    assert (standard.epochs, standard.batch_size, standard.learning_rate) == (200, 128, 0.1)
    assert (standard.momentum, standard.weight_decay, standard.schedule) == (0.9, 5e-4, "step")
    assert standard.augmentation == Augmentation(padding=4, flip=True, rotation_deg=15)
    assert (fast.epochs, fast.schedule, fast.precision) == (16, "one-cycle", "bf16-mixed")
    assert fast.batch_size > standard.batch_size
    assert (small.epochs, small.schedule) == (8, "one-cycle")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs: found 0, expected 1 or more"),
        ({"batch_size": 1}, "batch_size: found 1, expected 2 or more"),
        ({"momentum": 1.0}, "momentum: found 1.0"),
        ({"label_smoothing": -0.1}, "label_smoothing: found -0.1"),
        ({"schedule": "never"}, "schedule: found 'never', expected step, one-cycle, cosine"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        replace(RECIPE, **change)


def test_images_labels_and_model_that_do_not_fit_are_refused_before_training():
    images, labels = bars()
    cases: list[tuple[Tensor, Tensor, dict[str, Any], str]] = [
        (images.float(), labels, {}, r"found torch.float32 of shape \(72, 3, 9, 9\)"),
        (images, labels[:-1], {}, r"labels: found torch.int64 of shape \(71,\)"),
        (images, labels.int(), {}, "labels: found torch.int32"),
        (images, labels + 1, {}, r"found 1 to 3, but the model returns \(3,\)"),
        (images[:, :2], labels, {}, "the model does not take 2x9x9"),
        (
            images,
            labels,
            {"normalization": Normalization(mean=(0.5, 0.5))},
            "mean: found 2 values for 3 channels",
        ),
    ]
    for x, y, options, message in cases:
        model = net()
        with pytest.raises(InputError, match=message):
            train_images(model, x, y, RECIPE, seed=0, **options)
        assert equal(net(), model)
        assert model.training


@pytest.mark.parametrize("coarse", [[0, 1], [0, 1, -1]])
def test_superclasses_that_leave_a_class_out_are_refused(coarse):
    with pytest.raises(InputError, match="expected one for each of the model's 3 classes"):
        evaluate_images(net(), *bars(), torch.tensor(coarse))


def test_a_class_without_an_image_needs_no_superclass_and_is_never_right():
    images, labels = torch.arange(2, dtype=torch.uint8).view(2, 1, 1, 1), torch.tensor([0, 1])
    model = Table([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    scores = evaluate_images(model, images, labels, torch.tensor([0, 0, -1]))
    assert scores.superclass == 0.5


@pytest.mark.parametrize(
    ("layer", "innermost"),
    [
        (nn.Conv2d(16, 32, 1, 2), True),
        (nn.Conv2d(4, 8, 3, 2), True),
        (nn.Conv2d(4, 8, 1), True),
        (nn.Conv2d(15, 32, 1, 2), False),  # where oneDNN writes past its memory
        (nn.Conv2d(32, 32, 1, (1, 2), groups=4), False),
    ],
)
def test_channels_lie_innermost_where_that_is_safe(layer, innermost):
    found = layout_of(nn.Sequential(nn.Identity(), layer))
    assert (found == torch.channels_last) == innermost


def test_a_network_of_two_channels_is_trained_by_a_recipe_with_channels_innermost():
    model = nn.Sequential(
        conv_norm(3, 2, 3), BasicBlock(2, 4, stride=2), BasicBlock(4, 8, stride=2)
    )
    model = nn.Sequential(model, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    recipe = replace(RECIPE, epochs=1, augmentation=Augmentation())
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(64) % 3
    record = train_images(model, images, labels, recipe=recipe, seed=0, progress=Progress())
    assert all(map(math.isfinite, record.losses))
