"""CLIP computes what transformers' CLIPModel computes, and its weights are taken for what they are."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from scissorhands_jax import torch_weights, trees
from scissorhands_jax.diffusion import clip_weights, model_folder, quality, tokenizer, vision
from scissorhands_jax.errors import InputError, WeightsError
from tests.diffusion import traces as diffusion_traces
from tests.diffusion.networks_test import assert_agrees, output_and_gradient, recorded, to_jax

TINY = vision.CLIPS["tiny"]


@pytest.mark.parametrize("name", ["clip_images", "clip_texts"])
def test_features_and_gradients_are_those_of_pytorch(name):
    given = diffusion_traces.inputs()
    x = to_jax(given["pixels"]) if name == "clip_images" else jnp.asarray(given["ids"])
    model = getattr(vision, name)(TINY)
    params = diffusion_traces.params(vision.clip_outline(TINY))
    output, gradient = output_and_gradient(model, params, x, lambda x: x, recorded()[name])
    tower = ("vision_model.", "visual_") if name == "clip_images" else ("text_",)
    assert_agrees(name, output, {key: value for key, value in gradient.items() if key.startswith(tower)})


def test_images_are_prepared_as_transformers_prepares_them():
    photograph = Image.fromarray(diffusion_traces.inputs()["photograph"])
    found = vision.preprocess_image(photograph, TINY.vision.size).transpose(2, 0, 1)
    np.testing.assert_allclose(found, recorded()["clip_prepared"], atol=2e-6)
    assert vision.preprocess_image(photograph.transpose(Image.Transpose.ROTATE_90)).shape == (224, 224, 3)


@pytest.mark.parametrize(
    ("name", "size"), [("ViT-L/14", 427_616_513), ("ViT-B/16", 149_620_737), ("ViT-B/32", 151_277_313)]
)
def test_networks_have_their_published_sizes(name, size):
    assert trees.count_weights(vision.clip_outline(vision.CLIPS[name])) + 1 == size  # and logit_scale


def test_a_score_is_a_hundred_times_the_cosine_or_nothing():
    images, texts = np.array([[3.0, 0.0], [1.0, 1.0], [-2.0, 0.0]]), np.array([[5.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
    np.testing.assert_allclose(vision.clip_scores(images, texts), [100, 100 / np.sqrt(2), 0])


def tensors():
    return diffusion_traces.weights(torch_weights.state_dict_shapes(vision.clip_outline(TINY), {}))


def write(path, arrays):
    safetensors.numpy.save_file(arrays, path)
    return path


class TestWeights:
    @pytest.mark.parametrize("dtype", [np.float32, np.float16])
    def test_a_file_of_transformers_is_read(self, tmp_path, dtype):
        arrays = {name: array.astype(dtype) for name, array in tensors().items()}
        further = {"logit_scale": np.array(4.6, np.float32), "text_model.embeddings.position_ids": np.arange(11)[None]}
        write(tmp_path / "model.safetensors", arrays | further)
        name, params = clip_weights.read_clip(tmp_path)
        found = torch_weights.to_state_dict(params, {})
        assert name == "tiny"
        assert set(found) == set(arrays)
        assert all((found[key] == arrays[key].astype(np.float32)).all() for key in arrays)

    def test_missing_extra_and_misshapen_tensors_are_named(self, tmp_path):
        arrays = tensors()
        del arrays["visual_projection.weight"]
        arrays["vision_model.head.weight"] = np.zeros(3, np.float32)
        arrays["vision_model.pre_layrnorm.weight"] = np.zeros(47, np.float32)
        with pytest.raises(WeightsError) as caught:
            clip_weights.read_clip(write(tmp_path / "x.safetensors", arrays))
        message = str(caught.value)
        assert "x.safetensors does not hold CLIP tiny: " in message
        assert "1 missing (visual_projection.weight)" in message
        assert "1 not in the model (vision_model.head.weight)" in message
        assert "1 that do not fit (vision_model.pre_layrnorm.weight: expected (48,), found (47,))" in message

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda arrays: {"visual.conv1.weight": np.zeros(2)}, "is CLIP in the layout of its authors or of open_cl"),
            (
                lambda arrays: {name: array for name, array in arrays.items() if name.startswith("text_")},
                "has no image encoder of CLIP, it holds a text encoder alone",
            ),
            (lambda arrays: {"conv.weight": np.zeros(2)}, "has no image encoder of CLIP, it holds something else"),
            (
                lambda arrays: arrays | {"vision_model.embeddings.patch_embedding.weight": np.zeros((1280, 3, 14, 14))},
                r"is a CLIP with patches \(1280, 3, 14, 14\) and positions \(17, 48\), none of ViT-L/14, ViT-L/14@336p"
                "x, ViT-B/16, ViT-B/32; give",
            ),
            (
                lambda arrays: arrays | {"text_projection.weight": np.full((24, 32), np.inf, np.float32)},
                "text_projection.weight holds NaN or infinity",
            ),
        ],
    )
    def test_other_files(self, tmp_path, change, message):
        with pytest.raises(WeightsError, match=message):
            clip_weights.read_clip(write(tmp_path / "x.safetensors", change(tensors())))

    def test_another_activation_is_another_network(self, tmp_path):
        """LAION's networks have the same tensors and an exact GELU."""
        write(tmp_path / "model.safetensors", tensors())
        (tmp_path / "config.json").write_text(json.dumps({"vision_config": {"hidden_act": "gelu"}}))
        with pytest.raises(WeightsError, match=r"config.json names the activation gelu, and OpenAI's is quick_gelu"):
            clip_weights.read_clip(tmp_path)
        (tmp_path / "config.json").write_text(json.dumps({"vision_config": {}}))
        assert clip_weights.read_clip(tmp_path)[0] == "tiny"

    def test_no_file(self, tmp_path):
        with pytest.raises(
            InputError, match=r"there is no file .*model.safetensors; give the model.safetensors of a CLIP"
        ):
            clip_weights.read_clip(tmp_path)


class TestTokenizer:
    """Which one CLIP's texts are read with: words of another would be other words, without an error."""

    def write(self, folder, merges=()):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "vocab.json").write_text(json.dumps(tokenizer.byte_tokens(merges)))
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges), ""]))

    def test_that_beside_the_weights_comes_first_and_has_to_be_of_the_same_size(self, tmp_path):
        model, clip = tmp_path / "model", tmp_path / "clip"
        self.write(model / "tokenizer")
        clip.mkdir()
        file = write(clip / "model.safetensors", tensors())
        found = model_folder.load_clip_tokenizer(file, model)
        assert found.files[0].parent == model / "tokenizer"
        assert quality.load_clip(file, found).name == "tiny"
        self.write(clip, [("a", "b")])
        found = model_folder.load_clip_tokenizer(clip, model)
        assert found.files[0].parent == clip
        with pytest.raises(InputError, match="has 515 tokens, and CLIP tiny knows 514, so it would read other words"):
            quality.load_clip(file, found)
        assert model_folder.load_clip_tokenizer(clip, None, model).files[0].parent == model / "tokenizer"
