"""Published architectures, built small from their configurations, without a download."""

import pytest
import torch
from torch import Tensor, nn

from isthmus.graph import capture, cuts
from isthmus.models import load_model
from isthmus.split import split
from tests.split.plans import plan_at

tf = pytest.importorskip("transformers", reason="transformers is not installed")

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
IMAGE = {"image_size": 32, "num_labels": 5}
TEXT = {"vocab_size": 64, "max_position_embeddings": 32}


class Answer(nn.Module):
    """A model that takes one tensor and returns one: its logits or its last hidden state."""

    def __init__(self, net: nn.Module, **options: bool) -> None:
        super().__init__()
        self.net, self.options = net, options

    def forward(self, x: Tensor) -> Tensor:
        answer = self.net(x, **self.options)
        return answer.logits if "logits" in answer else answer.last_hidden_state


def vit() -> nn.Module:
    return Answer(tf.ViTForImageClassification(tf.ViTConfig(**SIZES, **IMAGE, patch_size=8)))


def deit() -> nn.Module:
    config = tf.DeiTConfig(**SIZES, **IMAGE, patch_size=8)
    return Answer(tf.DeiTForImageClassificationWithTeacher(config))


def bert() -> nn.Module:
    return Answer(tf.BertForSequenceClassification(tf.BertConfig(**SIZES, **TEXT)))


def gpt2() -> nn.Module:
    config = tf.GPT2Config(
        vocab_size=64,
        n_positions=32,
        n_embd=32,
        n_layer=1,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    return Answer(tf.GPT2LMHeadModel(config), use_cache=False)


def llama() -> nn.Module:
    config = tf.LlamaConfig(**SIZES, **TEXT, num_key_value_heads=1)
    return Answer(tf.LlamaForCausalLM(config), use_cache=False)


def t5() -> nn.Module:
    config = tf.T5Config(vocab_size=64, d_model=32, d_kv=16, d_ff=48, num_layers=1, num_heads=2)
    return Answer(tf.T5EncoderModel(config))


def whisper() -> nn.Module:
    config = tf.WhisperConfig(
        d_model=32,
        encoder_layers=1,
        encoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_layers=1,
        decoder_attention_heads=2,
        num_mel_bins=8,
        max_source_positions=16,
    )
    return Answer(tf.WhisperModel(config).get_encoder())


def resnet() -> nn.Module:
    config = tf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2])
    return Answer(tf.ResNetForImageClassification(config))


def mobilenetv2() -> nn.Module:
    config = tf.MobileNetV2Config(**IMAGE, depth_multiplier=0.1, min_depth=4)
    return Answer(tf.MobileNetV2ForImageClassification(config))


def convnext() -> nn.Module:
    config = tf.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 2], num_stages=2)
    return Answer(tf.ConvNextForImageClassification(config))


def swin() -> nn.Module:
    config = tf.SwinConfig(
        **IMAGE, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[1, 2], window_size=4
    )
    return Answer(tf.SwinForImageClassification(config))


def segformer() -> nn.Module:
    config = tf.SegformerConfig(
        num_encoder_blocks=2,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        sr_ratios=[4, 2],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=16,
        num_labels=4,
    )
    return Answer(tf.SegformerForSemanticSegmentation(config))


def image(batch: int) -> Tensor:
    return torch.rand(batch, 3, 32, 32)


def tokens(batch: int) -> Tensor:
    return torch.randint(64, (batch, 10))


def spectrum(batch: int) -> Tensor:
    return torch.rand(batch, 8, 32)


SEVERAL_SECONDS = pytest.mark.slow
STOCHASTIC_DEPTH = {"eval_form": True}


@pytest.mark.long
@pytest.mark.parametrize(
    ("make", "example", "options"),
    [
        (vit, image, {}),
        (bert, tokens, {}),
        (gpt2, tokens, {}),
        (llama, tokens, {}),
        (t5, tokens, {}),
        (whisper, spectrum, {}),
        (resnet, image, {}),
        (convnext, image, {}),
        (segformer, image, STOCHASTIC_DEPTH),
        (deit, image, {}),
        pytest.param(mobilenetv2, image, {}, marks=SEVERAL_SECONDS),
        pytest.param(swin, image, STOCHASTIC_DEPTH, marks=SEVERAL_SECONDS),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of transformers about its own configurations
def test_a_real_model_is_counted_and_computes_the_same_in_four_stages(make, example, options):
    torch.manual_seed(0)
    check(make().eval(), example, options)


def check(model, example, options):
    graph = capture(model, (example(2),))
    assert graph.unknown_ops == ()
    assert graph.num_parameters == sum(p.numel() for p in model.parameters())
    usable = [cut.index for cut in cuts(graph) if not cut.obstacle]
    indices = [usable[len(usable) * k // 4] for k in (1, 2, 3)]
    divided = split(model, plan_at(graph, *indices), **options)
    x = example(3)
    with torch.no_grad():
        torch.testing.assert_close(divided(x), model(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "test_vit"])
def test_a_network_of_timm_is_counted_and_computes_the_same_in_four_stages(name):
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    pytest.importorskip("timm", reason="timm is not installed")
    torch.manual_seed(0)
    check(load_model(f"timm:{name}").eval(), lambda batch: torch.rand(batch, 3, 160, 160), {})
