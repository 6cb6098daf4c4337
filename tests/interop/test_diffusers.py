"""Networks of diffusers, saved by it with random weights: what they compute, what they are told, what they sample."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffax as dx
from diffax import interop
from tests.interop.peers import compiled, peer, randomised

torch, diffusers = peer("torch"), peer("diffusers")
torch.set_num_threads(1)  # beside other tests, several would wait for each other

TOKENS = 12  # size of a text's token
WEIGHTS = "diffusion_pytorch_model.safetensors"

UNETS = {
    "DDPM": lambda: diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(32, 32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
    ),
    "classes": lambda: diffusers.UNet2DModel(
        sample_size=(8, 4),
        in_channels=4,
        out_channels=6,
        block_out_channels=(16, 32),
        layers_per_block=2,
        down_block_types=("AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
        num_class_embeds=5,
    ),
    "SD1": lambda: diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TOKENS,
        attention_head_dim=4,
        norm_num_groups=8,
    ),
    "SD2": lambda: diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TOKENS,
        attention_head_dim=(2, 4),
        norm_num_groups=8,
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2),
        num_class_embeds=5,
    ),
}


def tiny(**changes):
    """The smallest "UNet2DModel" with attention."""
    return diffusers.UNet2DModel(
        **dict(
            sample_size=4,
            block_out_channels=(16,),
            layers_per_block=1,
            down_block_types=("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",),
            norm_num_groups=4,
        )
        | changes
    )


def tiny_autoencoder(**changes):
    return diffusers.AutoencoderKL(
        **dict(
            sample_size=8,
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
        )
        | changes
    )


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def channels_first(x):
    return torch.tensor(np.moveaxis(np.asarray(x), -1, 1))


def channels_last(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


def theirs(model, x, t, **conditions):
    with torch.no_grad():
        conditions = {name: torch.tensor(value) for name, value in conditions.items()}
        return channels_last(model(channels_first(x), torch.tensor(t), **conditions).sample)


def saved(model, folder, scheduler=None, **how):
    """The folder, with the model and a scheduler_config.json in it."""
    model.save_pretrained(folder, **how)
    (scheduler or diffusers.DDPMScheduler()).save_pretrained(folder)
    return folder


def edited(folder, **fields):
    """The folder, with other entries in its config.json; ... removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))
    return folder


def same(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


# ---- networks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", UNETS)
def test_a_unet_is_that_of_diffusers(name, tmp_path):
    model, small = randomised(UNETS[name]()), randomised(UNETS[name](), 1e-3)
    loaded = interop.from_diffusers(saved(model, tmp_path))
    apply = compiled(loaded.network.apply)
    size = model.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    x, t = drawn(3, height, width, model.config.in_channels), np.float32([0, 371.5, 999])
    given = {}
    if model.config.num_class_embeds:
        given["class_labels"] = np.array([0, 4, 2])
    if "cross_attention_dim" in model.config:
        given["encoder_hidden_states"] = drawn(3, 7, TOKENS, seed=1)
    names = {"class_labels": "label", "encoder_hidden_states": "tokens"}
    cond = {names[key]: value for key, value in given.items()}
    cond = next(iter(cond.values()), None) if len(cond) < 2 else cond
    channels = x.shape[-1]
    expected, fine = (theirs(m, x, t, **given)[..., :channels] for m in (model, small))  # without a variance
    np.testing.assert_allclose(apply(loaded.params, x, t, cond), expected, atol=1e-4)
    params = interop.from_diffusers(tmp_path, weights=small.state_dict()).params
    np.testing.assert_allclose(apply(params, x, t, cond), fine, atol=1e-4)
    # and these numbers say something of the inputs
    for change in [{key: value[::-1].copy() for key, value in given.items() if key == one} for one in given]:
        assert np.abs(theirs(model, x, t, **given | change)[..., :channels] - expected)[0].max() > 1e-3
    assert np.abs(theirs(model, x, t + 20, **given)[..., :channels] - expected).max((1, 2, 3)).min() > 1e-3


@pytest.mark.parametrize("quantise", [True, False])
def test_an_autoencoder_is_that_of_diffusers(tmp_path, quantise):
    shift = 0.0 if quantise else 0.1
    sizes = dict(
        layers_per_block=2 if quantise else 1,
        use_quant_conv=quantise,
        use_post_quant_conv=quantise,
        scaling_factor=0.3,
        shift_factor=shift or None,
    )
    tiny_autoencoder(**sizes).save_pretrained(tmp_path)
    network, _ = interop.autoencoder_from_diffusers(tmp_path)

    @compiled
    def evaluated(params, x, z):
        return network.posterior(params, x), network.encode(params, x), network.decode(params, z)

    x, z = drawn(2, 8, 8, 3), drawn(2, 4, 4, 4, seed=1)
    for model in (randomised(tiny_autoencoder(**sizes)), randomised(tiny_autoencoder(**sizes), 1e-3)):
        _, params = interop.autoencoder_from_diffusers(tmp_path, weights=model.state_dict())
        with torch.no_grad():
            expected = model.encode(channels_first(x)).latent_dist
            images = channels_last(model.decode(channels_first(z)).sample)
        # a pipeline scales what the autoencoder gives: (z - shift) scale, and z / scale + shift back
        (mean, log_variance), latents, decoded = evaluated(params, x, 0.3 * (z - shift))
        np.testing.assert_allclose(mean, channels_last(expected.mean), atol=1e-4)
        np.testing.assert_allclose(log_variance, channels_last(expected.logvar), atol=1e-4)
        np.testing.assert_allclose(latents, 0.3 * (mean - shift), atol=1e-5)
        np.testing.assert_allclose(decoded, images, atol=1e-4)


@pytest.mark.parametrize(("trained", "shown"), [(4, 8), (None, 4)])
def test_images_of_another_size_than_the_configs_give_diffusers_outputs(tmp_path, trained, shown):
    """Stable Diffusion is sampled at many sizes: attention belongs to levels, not to heights."""
    model = randomised(tiny(sample_size=trained))
    loaded = interop.from_diffusers(saved(model, tmp_path))
    x, t = drawn(2, shown, shown, 3), np.float32([10, 700])
    np.testing.assert_allclose(compiled(loaded.network.apply)(loaded.params, x, t), theirs(model, x, t), atol=1e-4)


# ---- folders and files ----------------------------------------------------------------------------------------------


def test_a_pipelines_folder_has_unet_autoencoder_and_scheduler(tmp_path):
    model, autoencoder = randomised(tiny()), randomised(tiny_autoencoder())
    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction")
    model.save_pretrained(tmp_path / "unet")
    autoencoder.save_pretrained(tmp_path / "vae")
    scheduler.save_pretrained(tmp_path / "scheduler")
    (tmp_path / "model_index.json").write_text('{"_class_name": "SomePipeline"}')
    loaded = interop.from_diffusers(tmp_path)
    alone = interop.from_diffusers(str(tmp_path / "unet"))  # beside which the scheduler is found
    same(loaded.params, alone.params)
    for logsnr in (-5.0, 0.0, 5.0):
        same(loaded.preconditioning(logsnr), alone.preconditioning(logsnr))
        same(loaded.preconditioning(logsnr)[:3], dx.preconditioning.v()(logsnr)[:3])
    same(
        interop.autoencoder_from_diffusers(tmp_path)[1],
        interop.autoencoder_from_diffusers(tmp_path / "vae")[1],
    )


def test_the_sources_of_weights_are_the_same(tmp_path):
    model = randomised(tiny())
    expected = interop.from_diffusers(saved(model, tmp_path / "safe")).params
    folder = saved(model, tmp_path / "bin", safe_serialization=False)
    assert not list(folder.glob("*.safetensors"))
    same(interop.from_diffusers(folder).params, expected)
    (tmp_path / "bin" / "diffusion_pytorch_model.bin").rename(tmp_path / "elsewhere.bin")
    for weights in (tmp_path / "elsewhere.bin", tmp_path / "safe" / WEIGHTS, model.state_dict()):
        same(interop.from_diffusers(folder, weights=weights).params, expected)
    with pytest.raises(ValueError, match=rf"neither {WEIGHTS} nor"):
        interop.from_diffusers(folder)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision_is_read_as_float32(tmp_path, kind):
    model = randomised(tiny()).to(getattr(torch, kind))
    params = interop.from_diffusers(saved(model, tmp_path)).params
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    kernel = model.mid_block.resnets[1].conv2.weight.detach().float().numpy()
    np.testing.assert_array_equal(params["middle_block1"]["conv1"]["kernel"], kernel.transpose(2, 3, 1, 0))


def test_attention_layers_by_their_names_of_2022_are_read(tmp_path):
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}

    def old(state, pixel=False):
        renamed = {}
        for name, tensor in state.items():
            for new, before in names.items():
                if new in name:
                    name = name.replace(new, before)
                    tensor = tensor[..., None, None] if pixel and tensor.ndim == 2 else tensor
            renamed[name] = tensor
        assert set(renamed) - set(state)
        return renamed

    model, autoencoder = randomised(tiny()), randomised(tiny_autoencoder())
    saved(model, tmp_path / "unet"), autoencoder.save_pretrained(tmp_path / "vae")
    expected = interop.from_diffusers(tmp_path / "unet").params
    same(interop.from_diffusers(tmp_path / "unet", weights=old(model.state_dict())).params, expected)
    expected = interop.autoencoder_from_diffusers(tmp_path / "vae")[1]
    for pixel in (False, True):  # the first autoencoders had convolutions of one pixel there
        weights = old(autoencoder.state_dict(), pixel)
        same(interop.autoencoder_from_diffusers(tmp_path / "vae", weights=weights)[1], expected)


def test_options_and_preconditioning_are_passed_on(tmp_path):
    tiny().save_pretrained(tmp_path)
    other = dx.preconditioning.flow()
    loaded = interop.from_diffusers(tmp_path, precondition=other, dropout=0.5)
    assert loaded.preconditioning is other
    x, level, apply = drawn(2, 4, 4, 3), jnp.zeros(2), compiled(loaded.network.apply)
    plain, dropped = (apply(loaded.params, x, level, key=key) for key in (None, jax.random.key(0)))
    assert np.abs(plain - dropped).max() > 1e-3


# ---- noise levels ---------------------------------------------------------------------------------------------------

SIGNAL = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2  # Nichol & Dhariwal's alpha_bar
BETAS = {
    "linear": np.linspace(1e-4, 0.02, 1000),
    "scaled_linear": np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2,
    "squaredcos_cap_v2": np.minimum(1 - SIGNAL[1:] / SIGNAL[:-1], 0.999),
}
RANGES = {"linear": {}, "scaled_linear": dict(beta_start=0.00085, beta_end=0.012), "squaredcos_cap_v2": {}}


def alpha_bars(betas):
    return np.cumprod(1 - np.asarray(betas, np.float64))


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """(folder, model, jitted apply, params) of one network for all that follows."""
    folder = tmp_path_factory.mktemp("tiny")
    model = randomised(tiny())
    loaded = interop.from_diffusers(saved(model, folder))
    return folder, model, compiled(loaded.network.apply), loaded.params


@pytest.mark.parametrize("kind", BETAS)
def test_at_the_level_of_a_time_step_the_network_is_told_its_number(network, tmp_path, kind):
    shutil.copytree(network[0], tmp_path, dirs_exist_ok=True)
    diffusers.DDPMScheduler(beta_schedule=kind, **RANGES[kind]).save_pretrained(tmp_path)
    bars, t = alpha_bars(BETAS[kind]), np.arange(1000)
    tell = interop.from_diffusers(tmp_path).preconditioning
    np.testing.assert_allclose(tell(np.log(bars / (1 - bars))).c_noise, t, atol=2e-3)
    between = np.log(bars / (1 - bars))[:-1] + np.diff(np.log(bars / (1 - bars))) / 2
    np.testing.assert_allclose(tell(between).c_noise, t[:-1] + 0.5, atol=2e-3)


def test_betas_that_are_listed_and_other_numbers_of_steps_are_read(network, tmp_path):
    shutil.copytree(network[0], tmp_path, dirs_exist_ok=True)
    betas = np.linspace(1e-3, 0.3, 20)
    for scheduler in [
        diffusers.DDPMScheduler(num_train_timesteps=20, trained_betas=list(betas)),
        diffusers.DDPMScheduler(num_train_timesteps=20, beta_start=1e-3, beta_end=0.3),
    ]:
        scheduler.save_pretrained(tmp_path)
        bars = alpha_bars(betas)
        told = interop.from_diffusers(tmp_path).preconditioning(np.log(bars / (1 - bars))).c_noise
        np.testing.assert_allclose(told, np.arange(20), atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "predicts"), [("linear", "epsilon"), ("scaled_linear", "v_prediction"), ("squaredcos_cap_v2", "sample")]
)
def test_the_denoiser_gives_diffusers_estimate_of_the_image_at_each_time_step(network, tmp_path, kind, predicts):
    folder, model, apply, params = network
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    scheduler = diffusers.DDIMScheduler(beta_schedule=kind, prediction_type=predicts, clip_sample=False, **RANGES[kind])
    scheduler.save_pretrained(tmp_path)
    scheduler.set_timesteps(1000)
    denoise = dx.denoiser(apply, params, interop.from_diffusers(tmp_path).preconditioning)
    bars = alpha_bars(BETAS[kind])
    for t in (0, 1, 40, 500, 900, 998):
        seen = drawn(2, 4, 4, 3, seed=t)  # alpha x_0 + sigma_t n
        output = channels_first(theirs(model, seen, np.float32([t, t])))
        expected = channels_last(scheduler.step(output, t, channels_first(seen)).pred_original_sample)
        alpha, sigma = np.sqrt(bars[t]), np.sqrt((1 - bars[t]) / bars[t])
        got = denoise(jnp.float32(seen / alpha), jnp.float32(sigma))
        # dividing by alpha makes as much of float32's errors as of the image
        np.testing.assert_allclose(got * alpha, expected * alpha, atol=1e-4, err_msg=f"t = {t}")


@pytest.mark.parametrize("to_one", [True, False])
def test_euler_on_the_sigmas_of_ddims_time_steps_is_ddim(network, to_one):
    folder, model, _, _ = network
    scheduler = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=to_one)
    scheduler.set_timesteps(10)
    times, seen = scheduler.timesteps, drawn(2, 4, 4, 3)
    x = channels_first(seen)
    for t in times:  # with to_one the last step ends without noise, otherwise at the level of step 0, where it starts
        output = channels_first(theirs(model, channels_last(x), np.float32([t, t])))
        x = scheduler.step(output, t, x).prev_sample
    bars = alpha_bars(BETAS["linear"])[np.asarray(times)]
    assert times[-1] == 0 and len(times) == 10
    sigmas = np.sqrt((1 - bars) / bars)
    sigmas, last = (np.append(sigmas, 0), 1.0) if to_one else (sigmas, np.sqrt(bars[-1]))
    loaded = interop.from_diffusers(folder)
    denoise = dx.denoiser(loaded.network.apply, loaded.params, loaded.preconditioning)
    start = jnp.float32(seen / np.sqrt(bars[0]))
    images = compiled(lambda x: dx.sample(denoise, x, sigmas, solver=dx.solvers.euler()))(start)
    np.testing.assert_allclose(images * last, channels_last(x), atol=1e-3, rtol=1e-3)


def test_a_target_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match=r"predicts = 'flow': must be one of epsilon, v_prediction, sample"):
        interop.time_steps(dx.schedules.linear_betas(), predicts="flow")


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_a_model_without_scheduler_needs_preconditioning(tmp_path):
    tiny().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"scheduler_config\.json: give precondition"):
        interop.from_diffusers(tmp_path)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(beta_schedule="sigmoid"), "beta_schedule = 'sigmoid'"),
        (dict(prediction_type="flow_prediction"), "flow_prediction"),
        (dict(rescale_betas_zero_snr=True), "rescale_betas_zero_snr"),
    ],
)
def test_schedulers_that_are_not_supported_are_named(network, tmp_path, fields, words):
    shutil.copytree(network[0], tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "scheduler_config.json").read_text()) | fields
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=words):
        interop.from_diffusers(tmp_path)


@pytest.mark.parametrize("kind", ["FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler", "ScoreSdeVeScheduler"])
def test_schedulers_without_betas_are_refused(network, tmp_path, kind):
    shutil.copytree(network[0], tmp_path, dirs_exist_ok=True)
    getattr(diffusers, kind)().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=kind):
        interop.from_diffusers(tmp_path)


DOWN, UP = ["DownBlock2D", "AttnDownBlock2D"], ["AttnUpBlock2D", "UpBlock2D"]
PLAIN = dict(block_out_channels=[16, 32], down_block_types=DOWN, up_block_types=UP)
CROSS = dict(
    _class_name="UNet2DConditionModel",
    mid_block_type="UNetMidBlock2DCrossAttn",
    block_out_channels=[16, 32],
    down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
    up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
    cross_attention_dim=TOKENS,
)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (PLAIN | dict(down_block_types=["SkipDownBlock2D", "AttnSkipDownBlock2D"]), "AttnSkipDownBlock2D"),
        (PLAIN | dict(up_block_types=["AttnUpBlock2D", "ResnetUpsampleBlock2D"]), "ResnetUpsampleBlock2D"),
        (PLAIN | dict(up_block_types=["UpBlock2D", "UpBlock2D"]), "attention at the same levels"),
        (PLAIN | dict(down_block_types=["DownBlock2D", "DownBlock2D"]), "attention at the same levels"),
        (PLAIN | dict(mid_block_type=None), "mid_block_type"),
        (PLAIN | dict(act_fn="gelu"), "act_fn = 'gelu'"),
        (PLAIN | dict(center_input_sample=True), "center_input_sample"),
        (PLAIN | dict(time_embedding_type="fourier"), "time_embedding_type"),
        (PLAIN | dict(class_embed_type="timestep"), "class_embed_type"),
        (PLAIN | dict(resnet_time_scale_shift="scale_shift"), "resnet_time_scale_shift"),
        (PLAIN | dict(downsample_type="resnet"), "downsample_type"),
        (PLAIN | dict(add_attention=False), "add_attention"),
        (PLAIN | dict(attn_norm_num_groups=8), "attn_norm_num_groups"),
        (PLAIN | dict(mid_block_scale_factor=1.4), "mid_block_scale_factor"),
        (PLAIN | dict(block_out_channels=[16, 24]), "block_out_channels"),
        (PLAIN | dict(downsample_padding=2), "downsample_padding"),
        (PLAIN | dict(freq_shift=2), "freq_shift"),
        (PLAIN | dict(_class_name="UNet3DConditionModel"), "UNet3DConditionModel"),
        (CROSS | dict(down_block_types=["DownBlock2D", "SimpleCrossAttnDownBlock2D"]), "SimpleCrossAttnDownBlock2D"),
        (CROSS | dict(up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"]), "attention at the same levels"),
        (CROSS | dict(mid_block_type="UNetMidBlock2DSimpleCrossAttn"), "mid_block_type"),
        (CROSS | dict(addition_embed_type="text_time"), "addition_embed_type = 'text_time'"),
        (CROSS | dict(class_embed_type="projection"), "class_embed_type = 'projection'"),
        (CROSS | dict(encoder_hid_dim=32), "encoder_hid_dim"),
        (CROSS | dict(attention_type="gated"), "attention_type"),
        (CROSS | dict(dual_cross_attention=True), "dual_cross_attention"),
        (CROSS | dict(only_cross_attention=[False, True]), "only_cross_attention"),
        (CROSS | dict(conv_in_kernel=5), "conv_in_kernel"),
        (CROSS | dict(time_cond_proj_dim=16), "time_cond_proj_dim"),
        (CROSS | dict(cross_attention_dim=[12, 16]), "cross_attention_dim"),
        (CROSS | dict(layers_per_block=[1, 2]), "layers_per_block"),
        (CROSS | dict(attention_head_dim=[2, 8]), "attention_head_dim"),
        (CROSS | dict(transformer_layers_per_block=[[1, 2], [1, 1]]), "depth|transformer_layers_per_block"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_architectures_that_are_not_supported_are_named(network, fields, words, tmp_path):
    shutil.copytree(network[0], tmp_path, dirs_exist_ok=True)
    with pytest.raises(ValueError, match=words):
        interop.from_diffusers(edited(tmp_path, **fields))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(act_fn="gelu"), "act_fn"),
        (dict(mid_block_add_attention=False), "mid_block_add_attention"),
        (dict(latents_mean=[0.0] * 4), "latents_mean"),
        (dict(latents_std=[1.0] * 4), "latents_std"),
        (dict(down_block_types=["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]), "AttnDownEncoderBlock2D"),
        (dict(up_block_types=["AttnUpDecoderBlock2D", "UpDecoderBlock2D"]), "AttnUpDecoderBlock2D"),
        (dict(use_quant_conv=False), "use_quant_conv"),
        (dict(_class_name="VQModel"), "VQModel"),
        (dict(block_out_channels=[16, 24]), "block_out_channels"),
        (dict(out_channels=1), "config out_channels"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_autoencoders_that_are_not_supported_are_named(tmp_path, fields, words):
    tiny_autoencoder().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=words):
        interop.autoencoder_from_diffusers(edited(tmp_path, **fields))


def test_a_unet_is_no_autoencoder_and_an_autoencoder_no_unet(tmp_path):
    saved(tiny(), tmp_path / "unet"), saved(tiny_autoencoder(), tmp_path / "vae")
    with pytest.raises(ValueError, match="a UNet2DModel, must be an AutoencoderKL"):
        interop.autoencoder_from_diffusers(tmp_path / "unet")
    with pytest.raises(ValueError, match="its class is AutoencoderKL; supported are UNet2DModel"):
        interop.from_diffusers(tmp_path / "vae")


@pytest.mark.parametrize("which", ["unet", "autoencoder"])
def test_all_that_does_not_fit_is_said_at_once(tmp_path, which):
    if which == "unet":
        model, load, (down, up) = tiny(), interop.from_diffusers, ("down", "up")
    else:
        model, load, (down, up) = tiny_autoencoder(), interop.autoencoder_from_diffusers, ("encoder.down", "decoder.up")
    gone, bent = (f"{way}_blocks.0.resnets.0.conv1.weight" for way in (down, up))
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    del state[gone]
    state[bent] = state[bent][:, :-1]
    state["adapter.weight"] = np.zeros((2, 2), np.float32)
    with pytest.raises(ValueError) as error:
        load(saved(model, tmp_path), weights=state)
    text = str(error.value)
    assert text.index("1 missing") < text.index(gone)
    assert text.index("1 not known") < text.index("adapter.weight")
    assert text.index("1 of another shape") < text.index(bent) and str(list(state[bent].shape)) in text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"block_out_channels": [16',
        b"[]",
        b'"text"',
        b"{}",
        b"\xff\xfe\x00",
        b'{"block_out_channels": [16]}',
        b'{"block_out_channels": "16", "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}',
        b'{"block_out_channels": [16], "down_block_types": 3, "up_block_types": 3}',
    ],
)
def test_a_damaged_config_is_named(network, tmp_path, content):
    shutil.copytree(network[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_bytes(content)
    for load in (interop.from_diffusers, interop.autoencoder_from_diffusers):
        with pytest.raises(ValueError, match=r"config\.json"):
            load(tmp_path)


def test_a_damaged_scheduler_config_is_named(network, tmp_path):
    shutil.copytree(network[0], tmp_path, dirs_exist_ok=True)
    for content in ('{"beta', "[]"):
        (tmp_path / "scheduler_config.json").write_text(content)
        with pytest.raises(ValueError, match=r"scheduler_config\.json"):
            interop.from_diffusers(tmp_path)


def test_what_is_no_folder_of_a_model_is_refused(network, tmp_path):
    for source in (tmp_path, tmp_path / "none", network[0] / WEIGHTS, network[0] / "config.json"):
        for load in (interop.from_diffusers, interop.autoencoder_from_diffusers):
            with pytest.raises(ValueError, match=source.name):
                load(source)


def test_an_inpainting_network_takes_mask_and_image_as_a_condition(tmp_path):
    types = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    make = functools.partial(diffusers.UNet2DModel, 8, block_out_channels=(32,), layers_per_block=1, **types)
    model = randomised(make(in_channels=7, out_channels=3))
    loaded = interop.from_diffusers(saved(model, tmp_path))
    x, image, t = drawn(2, 8, 8, 3), drawn(2, 8, 8, 4, seed=1), np.float32([10, 700])
    expected = theirs(model, np.concatenate([x, image], -1), t)
    np.testing.assert_allclose(loaded.network.apply(loaded.params, x, t, image), expected, atol=1e-4)
