"""What configurations of diffusers say is read, and what the networks here cannot be is refused by its name."""

import dataclasses
import json

import pytest

from scissorhands_jax.diffusion import folder_configs, networks
from scissorhands_jax.diffusion.networks import PARTS
from scissorhands_jax.diffusion.schedules import SD_V1_SCHEDULE, Schedule
from scissorhands_jax.errors import InputError
from tests.diffusion.traces import REDUCED

PUBLISHED = {  # as in runwayml's 1.5, written by diffusers 0.6
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}


def write(path, document):
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize("config", [networks.SD_V1, networks.TINY, REDUCED], ids=["sd-v1", "tiny", "reduced"])
def test_sizes_and_schedules_come_back(config, tmp_path):
    for part in PARTS:
        path = write(tmp_path / part, folder_configs.config_document(getattr(config, part)))
        assert folder_configs.read_sizes(part, path) == getattr(config, part)
    schedule = write(tmp_path / "schedule", folder_configs.scheduler_document(config.schedule))
    assert folder_configs.read_schedule(schedule) == config.schedule


def test_published_configurations(tmp_path, caplog):
    assert folder_configs.read_sizes("unet", write(tmp_path / "unet", PUBLISHED)) == networks.SD_V1.unet
    text = {
        "architectures": ["CLIPTextModel"],
        "hidden_size": 768,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    }
    text |= {"bos_token_id": 0, "dtype": "float32", "model_type": "clip_text_model", "projection_dim": 768}
    assert (
        folder_configs.read_sizes("text", write(tmp_path / "text", text)) == networks.SD_V1.text
    )  # defaults are left out
    scheduler = {
        "_class_name": "PNDMScheduler",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
    }
    assert folder_configs.read_schedule(write(tmp_path / "scheduler", scheduler)) == SD_V1_SCHEDULE
    velocity = scheduler | {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    expected = dataclasses.replace(SD_V1_SCHEDULE, prediction="v_prediction")
    assert folder_configs.read_schedule(write(tmp_path / "scheduler", velocity)) == expected
    assert folder_configs.read_schedule(write(tmp_path / "scheduler", {})) == Schedule(1000, 0.0001, 0.02, "linear")
    assert caplog.text == ""
    folder_configs.read_sizes("unet", write(tmp_path / "unet", PUBLISHED | {"of_tomorrow": 3, "none": None}))
    assert "has of_tomorrow, which mean nothing here" in caplog.text


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("unet", {"attention_head_dim": [5, 10, 20, 20]}, "attention_head_dim = .* needs the same whole number on all"),
        ("unet", {"use_linear_projection": True}, "use_linear_projection = 'True', and a UNet here needs False"),
        ("unet", {"in_channels": 9}, "in_channels = '9', and a UNet here needs 4, since it is not for editing or inp"),
        ("unet", {"addition_embed_type": "text_time"}, "addition_embed_type = 'text_time', and a UNet here needs None"),
        ("unet", {"time_cond_proj_dim": 256}, "time_cond_proj_dim = '256'"),
        (
            "unet",
            {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"]},
            "down_block_types = .* needs a list of Cross",
        ),
        (
            "unet",
            {"up_block_types": ["UpBlock2D"] * 4},
            "up_block_types = .* needs those of down_block_types in reverse",
        ),
        ("unet", {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "mid_block_type = .*, and a UNet here needs"),
        ("unet", {"transformer_layers_per_block": [1, 2, 10, 10]}, "transformer_layers_per_block = "),
        ("unet", {"transformer_layers_per_block": 2}, "transformer_layers_per_block = '2', and a UNet here needs 1"),
        ("unet", {"block_out_channels": "wide"}, "block_out_channels = 'wide'"),
        ("unet", {"block_out_channels": [320, -1]}, "block_out_channels = .* whole numbers from 1 to"),
        ("unet", {"layers_per_block": True}, "layers_per_block = 'True', and a UNet here needs a whole number"),
        ("unet", {"_class_name": "UNet2DModel"}, "_class_name = 'UNet2DModel', and a UNet here needs UNet2DCondition"),
        (
            "vae",
            {"_class_name": "AutoencoderTiny"},
            "_class_name = 'AutoencoderTiny', and a VAE here needs Autoencoder",
        ),
        ("vae", {"use_quant_conv": False}, "use_quant_conv = 'False'"),
        ("vae", {"scaling_factor": "much"}, "scaling_factor = 'much', and a VAE here needs a number between 0 and"),
        ("vae", {"shift_factor": 0.1}, "shift_factor = '0.1'"),
        ("text", {"hidden_act": "gelu"}, "hidden_act = 'gelu', and a text encoder here needs quick_gelu"),
        ("text", {"architectures": ["CLIPModel"]}, r"architectures = \"\['CLIPModel'\]\", and a text encoder"),
        ("text", {"architectures": None, "model_type": "t5"}, "model_type = 't5'"),
    ],
)
def test_other_networks_are_refused_by_what_makes_them_so(tmp_path, part, changes, message):
    path = write(tmp_path / "config.json", folder_configs.config_document(getattr(networks.SD_V1, part)) | changes)
    with pytest.raises(InputError, match=f"config.json has {message}.*; import a model of Stable Diffusion v1's kind"):
        folder_configs.read_sizes(part, path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"prediction_type": "sample"},
            "prediction_type = 'sample', and a schedule here needs epsilon or v_prediction",
        ),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr = 'True', .* nothing of the signal is left"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas = "),
        ({"beta_schedule": "sigmoid"}, "beta_schedule = 'sigmoid', and a schedule here needs linear or"),
        ({"beta_end": 2}, "beta_end = '2', and a schedule here needs a number between 0 and 1"),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            "_class_name = 'FlowMatch.*' and a|_class_name = 'FlowMatch",
        ),
    ],
)
def test_other_trainings_are_refused(tmp_path, changes, message):
    path = write(tmp_path / "scheduler_config.json", folder_configs.scheduler_document(SD_V1_SCHEDULE) | changes)
    with pytest.raises(InputError, match=message):
        folder_configs.read_schedule(path)


def test_other_pipelines_and_damaged_files(tmp_path, caplog):
    path = write(tmp_path / "model_index.json", folder_configs.pipeline_document("PNDMScheduler"))
    folder_configs.check_pipeline(tmp_path)
    assert caplog.text == ""
    checker = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    write(path, folder_configs.pipeline_document("PNDMScheduler") | checker)
    folder_configs.check_pipeline(tmp_path)
    assert "names safety_checker, which images here do without" in caplog.text
    for name in ("StableDiffusionXLPipeline", "StableDiffusionInpaintPipeline", None):
        write(path, {"_class_name": name})
        with pytest.raises(InputError, match=f"has _class_name = '{name}', and a pipeline here needs StableDiffusionP"):
            folder_configs.check_pipeline(tmp_path)
    for text in ("{", "[1]", ""):
        path.write_text(text)
        with pytest.raises(InputError, match=r"model_index.json.*; copy or download it again"):
            folder_configs.check_pipeline(tmp_path)
