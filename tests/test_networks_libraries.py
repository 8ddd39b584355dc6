"""Networks of libraries: timm and transformers, each against the library itself, and a lab's own code. No network."""

import json

import numpy as np
import pytest
import torch
from network_cases import inputs, natural, row_of
from tolerances import TOLERANCES

from errors import UserError
from extract.networks import create_backbone, create_network, list_networks, network_spec
from extract.weights import file_hash

pytestmark = pytest.mark.filterwarnings("ignore::extract.weights.RandomWeightsWarning")


@pytest.fixture(autouse=True, scope="module")
def offline(tmp_path_factory):
    """No hub: as on a cluster, and an empty cache."""
    constants = pytest.importorskip("huggingface_hub.constants")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        patch.setattr(constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("CLIPBANK_WEIGHTS", raising=False)
        yield


def keeps_its_promises(net, n=3):
    """Shapes as the spec says, finite, of order 1; a row does not depend on its neighbours nor on failed ones."""
    spec = net.spec
    net.keep = tuple(spec.outputs)
    batch = inputs(spec, n)
    out = net.run(batch)
    alone = net.run(row_of(batch, 1))
    batch["frames"][0] = None
    holed = net.run(batch)
    for name, (shape, _) in spec.outputs.items():
        assert out[name].shape == (n, *shape) and out[name].dtype == np.float32
        assert np.isfinite(out[name]).all() and np.abs(out[name]).max() < 1e4 and out[name].std() > 0.1
        limit = TOLERANCES["fp32"]["neighbour"] * out[name].std()
        assert np.abs(alone[name][0] - out[name][1]).max() <= limit
        assert np.abs(holed[name][1:] - out[name][1:]).max() <= limit and not holed[name][0].any()
    assert not np.allclose(out["vector"][0], out["vector"][1], atol=1e-2 * out["vector"].std())
    assert spec.licence and spec.source and spec.requires and len(spec.mean) == len(spec.std) == 3
    recipe = json.dumps(spec.recipe())
    assert json.loads(recipe) == spec.recipe()
    return recipe


# -- timm ----------------------------------------------------------------------------------------------------------

TIMM = {  # name: (options, map, vector)
    "resnet18.a1_in1k": (64, (2, 2, 512), 512),
    "vit_tiny_patch16_224": (64, (4, 4, 192), 192),
    "deit_tiny_distilled_patch16_224": (64, (4, 4, 192), 192),  # two class tokens
    "vit_little_patch16_reg4_gap_256": (64, (4, 4, 320), 320),  # register tokens
    "convnext_atto": (64, (2, 2, 320), 320),
    "efficientnet_lite0": (64, (2, 2, 1280), 1280),
    "mobilenetv3_small_050": (64, (2, 2, 288), 1024),  # the pooled feature is wider than the map
    "swin_tiny_patch4_window7_224": (64, (2, 2, 768), 768),  # channels last
    "regnetx_002": (64, (2, 2, 368), 368),
    "mixer_s32_224": (224, (7, 7, 512), 512),
    "crossvit_9_240": (240, None, 384),  # two branches: no grid
    "repvit_m0_9": (64, (2, 2, 384), 384),  # has a `fuse` of its own
}


@pytest.fixture(scope="module")
def timm():
    return pytest.importorskip("timm")


def squash(size):
    return {"mode": "squash", "size": size}


@pytest.mark.parametrize("name", TIMM)
def test_timm_families(timm, name):
    size, grid, channels = TIMM[name]
    net = create_network(f"timm:{name}", "random:0", resize=squash(size))
    assert net.spec.outputs.get("spatial", (None,))[0] == grid
    assert net.spec.outputs["vector"] == ((channels,), "feature")
    keeps_its_promises(net)
    x = net.normalise(torch.from_numpy(np.stack(inputs(net.spec, 2)["frames"])))
    with torch.inference_mode():
        pooled = net.module.forward_head(net.module.forward_features(x), pre_logits=True)
    out = net.run(inputs(net.spec, 2))
    np.testing.assert_allclose(out["vector"], pooled, atol=1e-4 * float(pooled.std()))
    if name.startswith(("vit", "deit")):  # the same grid by timm's own way
        with torch.inference_mode():
            _, (theirs,) = net.module.forward_intermediates(x, indices=1, norm=True, output_fmt="NCHW")
        np.testing.assert_allclose(out["spatial"], theirs.movedim(1, -1), atol=1e-4)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "tf_efficientnet_lite0", "resnet18", "vit_tiny_patch16_224"])
def test_timm_spec_is_its_configuration(timm, name):
    spec, cfg = network_spec(f"timm:{name}"), timm.get_pretrained_cfg(name)
    assert spec.name == f"timm:{name}.{cfg.tag}" and spec.weights == spec.name
    assert (spec.mean, spec.std, spec.licence) == (cfg.mean, cfg.std, cfg.license)
    assert spec.resize == {"mode": "short_side", "size": int(cfg.input_size[1] / cfg.crop_pct), "crop": 224}
    assert spec.input_size == cfg.input_size[1:] and cfg.interpolation in spec.source
    assert network_spec(spec.name) == spec and not spec.name.startswith(tuple(list_networks()))
    if cfg.pool_size:
        assert spec.outputs["spatial"][0][:2] == cfg.pool_size
    # what timm's own evaluation does to one frame
    from timm.data import create_transform, resolve_data_config

    steps = str(create_transform(**resolve_data_config(pretrained_cfg=cfg.to_dict())))
    assert f"size={spec.resize['size']}," in steps and "CenterCrop(size=(224, 224))" in steps


def test_timm_squashing_models(timm):
    spec = network_spec("timm:convnext_tiny.in12k_ft_in1k_384")
    assert spec.resize == squash(384) and spec.outputs["spatial"][0] == (12, 12, 768)


@pytest.mark.parametrize(("name", "width"), [("mobilenetv5_300m_enc", 2048), ("qwen3_vit_88m_enc", 768)])
def test_timm_encoders_of_language_models_have_the_mean_of_their_map(timm, name, width):
    """One's forward_head knows no pre_logits, the other's refuses to pool."""
    spec = network_spec(f"timm:{name}", resize=squash(128))
    assert spec.outputs["vector"][0] == (width,) and spec.outputs["spatial"][0][2] == width


def test_timm_layers(timm):
    whole = create_network("timm:resnet18", "random:0", resize=squash(64))
    stage = create_network("timm:resnet18", "random:0", resize=squash(64), layer="3")
    logits = create_network("timm:resnet18", "random:0", resize=squash(64), layer="logits")
    assert stage.spec.outputs["spatial"] == ((4, 4, 256), "feature")
    assert logits.spec.outputs == {"vector": ((1000,), "feature")}
    assert len({net.spec.layer for net in (whole, stage, logits)}) == 3
    stage.module.load_state_dict(whole.module.state_dict())
    x = torch.rand(2, 3, 64, 64)
    taken = []
    hook = whole.module.layer3.register_forward_hook(lambda m, a, out: taken.append(out))
    assert whole(x).shape == (2, 2, 2, 512)
    hook.remove()
    np.testing.assert_allclose(stage(x), taken[0].movedim(1, -1), atol=1e-5)
    with pytest.raises(TypeError, match="no map"):
        logits(x)
    for layer, message in (("9", "layer 9"), ("top", "number of a stage")):
        with pytest.raises(UserError, match=message):
            network_spec("timm:resnet18", layer=layer)


def test_timm_without_a_fixed_size(timm):
    net = create_network("timm:resnet18", "random:0", resize={"mode": "short_side", "size": 64})
    assert net.spec.outputs == {"vector": ((512,), "feature")}
    out = net.run({"frames": [natural((64, 96, 3), 0), natural((80, 64, 3), 1)]})
    assert out["vector"].shape == (2, 512) and out["vector"].std() > 0.1
    with pytest.raises(UserError, match="one size"):
        network_spec("timm:vit_tiny_patch16_224", resize={"mode": "short_side", "size": 224})
    with pytest.raises(UserError, match="does not run on 8 x 8"):
        network_spec("timm:convnext_atto", resize=squash(8))
    with pytest.raises(UserError, match=r"no option 'size'; it takes layer, resize"):
        network_spec("timm:resnet18", size=8)


def test_timm_weights(timm, tmp_path, monkeypatch):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=64).eval()
    file = tmp_path / "mine.safetensors"
    save_file(model.state_dict(), file)
    net = create_network("timm:vit_tiny_patch16_224", str(file), resize=squash(64))
    assert net.weights_hash == file_hash(file) and net.lineage[0]["dataset"] == "unknown"
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        np.testing.assert_allclose(net(x).flatten(1, 2), model.forward_features(x)[:, 1:], atol=1e-5)
    # for another size timm resamples the position embeddings
    other = create_network("timm:vit_tiny_patch16_224", str(file), resize=squash(96))
    assert other.module.pos_embed.shape == (1, 37, 192) and other.spec.outputs["spatial"][0] == (6, 6, 192)
    with pytest.raises(UserError, match=r"not a checkpoint of timm:resnet18.a1_in1k; 102 keys missing: bn1.bias"):
        create_network("timm:resnet18", str(file))

    # nothing is here: the error says what to fetch and where to put it; then it is there
    with pytest.raises(UserError, match=r"huggingface.co/timm/resnet18.a1_in1k/resolve/main/model.safetensors as "
                       r"resnet18.a1_in1k.safetensors .* CLIPBANK_WEIGHTS"):  # fmt: skip
        create_network("timm:resnet18")
    with pytest.raises(UserError, match="no weights of mixer_s32_224: give a path or random:SEED"):
        create_network("timm:mixer_s32_224")
    save_file(timm.create_model("resnet18").state_dict(), tmp_path / "resnet18.a1_in1k.safetensors")
    monkeypatch.setenv("CLIPBANK_WEIGHTS", str(tmp_path))
    net = create_network("timm:resnet18")
    assert net.weights_origin == "file:resnet18.a1_in1k.safetensors"
    assert net.lineage == [{"dataset": "imagenet", "split": "train", "classes": 1000}]


def test_timm_weights_from_the_hubs_cache(timm, tmp_path, monkeypatch):
    import huggingface_hub
    from safetensors.torch import save_file

    file = tmp_path / "model.safetensors"
    save_file(timm.create_model("resnet18").state_dict(), file)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, name: str(file))
    net = create_network("timm:resnet18.a1_in1k")
    assert net.weights_origin == "hub:timm/resnet18.a1_in1k" and net.weights_hash == file_hash(file)


def test_timm_lineage_of_tags():
    from extract.networks.timm_library import trained_on

    assert [s["dataset"] for s in trained_on("laion2b_ft_in12k_in1k")] == ["imagenet", "imagenet12k", "laion2b"]
    assert [s["dataset"] for s in trained_on("fcmae_ft_in22k_in1k_384")] == ["imagenet", "imagenet22k"]
    assert trained_on("seer") == []


def test_timm_unknown_names(timm):
    with pytest.raises(UserError, match="timm has no model 'resnet81': did you mean .*resnet18"):
        network_spec("timm:resnet81")
    with pytest.raises(UserError, match=r"no weights 'resnet18.a1_in2k'; of resnet18 it knows resnet18.a1_in1k"):
        network_spec("timm:resnet18.a1_in2k")
    with pytest.raises(UserError, match="did you mean timm:resnet18"):
        network_spec("tim:resnet18")
    with pytest.raises(UserError, match="after it a name"):
        network_spec("timm:")


@pytest.mark.parametrize("package, extra, name", [("timm", "timm", "timm:resnet18"), ("transformers", "hf", "hf:a/b")])
def test_missing_packages(monkeypatch, package, extra, name):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(UserError, match=rf"pip install 'clipbank\[{extra}\]'"):
        network_spec(name)


# -- transformers --------------------------------------------------------------------------------------------------

WIDTHS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SMALL = {"image_size": 32, "patch_size": 16, **WIDTHS}
DINO = {"image_size": 64, "patch_size": 16, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
JEPA = {
    "crop_size": 32, "patch_size": 16, "frames_per_clip": 4, "hidden_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 1, "pred_hidden_size": 24, "pred_num_attention_heads": 1, "pred_num_hidden_layers": 1,
    "pred_num_mask_tokens": 2, "num_pooler_layers": 1,
}  # fmt: skip
TOWERS = {
    "vision_config": SMALL,
    "text_config": {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, **WIDTHS},
}
DECODER = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 1}
EDGE = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
SQUARE = {"size": {"height": 32, "width": 32}}
HF = {  # case: (model class, its configuration, processor and its settings, map or spatial, vector)
    "videomae": ("VideoMAEModel", {**SMALL, "num_frames": 4, "use_mean_pooling": False},
                 ("VideoMAEImageProcessor", EDGE), (2, 2, 2, 32), 32),
    "videomae_classifier": ("VideoMAEForVideoClassification", {**SMALL, "num_frames": 4, "num_labels": 7},
                            ("VideoMAEImageProcessor", EDGE), (2, 2, 2, 32), 32),
    "videomae_pretraining": ("VideoMAEForPreTraining", {**SMALL, "num_frames": 4, "use_mean_pooling": False, **DECODER},
                             ("VideoMAEImageProcessor", EDGE), (2, 2, 2, 32), 32),
    "vivit": ("VivitModel", {"image_size": 32, "tubelet_size": [2, 16, 16], "num_frames": 4, **WIDTHS},
              ("VivitImageProcessor", EDGE), (2, 2, 2, 32), 32),
    "vivit_video": ("VivitForVideoClassification", {"image_size": 32, "tubelet_size": [2, 16, 16], "num_frames": 4,
                                                    **WIDTHS}, ("VivitVideoProcessor", EDGE), (2, 2, 2, 32), 32),
    "timesformer": ("TimesformerModel", {**SMALL, "num_frames": 4},
                    ("VideoMAEImageProcessor", EDGE), (4, 2, 2, 32), 32),
    "vjepa2": ("VJEPA2Model", JEPA, ("VJEPA2VideoProcessor", {"crop_size": 32}), (2, 2, 2, 24), 24),
    "vjepa2_classifier": ("VJEPA2ForVideoClassification", JEPA,
                          ("VJEPA2VideoProcessor", {"crop_size": 32}), (2, 2, 2, 24), 24),
    "clip": ("CLIPModel", {**TOWERS, "projection_dim": 12}, ("CLIPImageProcessor", EDGE), (2, 2, 32), 12),
    "clip_vision": ("CLIPVisionModel", SMALL, ("CLIPImageProcessor", EDGE), (2, 2, 32), 32),
    "siglip": ("SiglipModel", TOWERS, ("SiglipImageProcessor", SQUARE), (2, 2, 32), 32),
    "dinov2": ("Dinov2Model", DINO, ("BitImageProcessor", EDGE), (2, 2, 32), 32),
    "dinov2_classifier": ("Dinov2ForImageClassification", DINO, ("BitImageProcessor", EDGE), (2, 2, 32), 64),
    "dinov2_registers": ("Dinov2WithRegistersModel", DINO, ("BitImageProcessor", EDGE), (2, 2, 32), 32),
    "vit": ("ViTModel", SMALL, ("ViTImageProcessor", SQUARE), (2, 2, 32), 32),
    "vit_interpolated": ("ViTForImageClassification", {**SMALL, "image_size": 64},
                         ("ViTImageProcessor", SQUARE), (2, 2, 32), 32),
    "vit_without_pooler": ("ViTForMaskedImageModeling", {**SMALL, "encoder_stride": 16},
                           ("ViTImageProcessor", SQUARE), (2, 2, 32), 32),
    "resnet": ("ResNetForImageClassification", {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1],
                                                "embedding_size": 8},
               ("ConvNextImageProcessor", {"size": {"shortest_edge": 64}, "crop_pct": 0.875}), (2, 2, 16), 16),
    "swin": ("SwinModel", {"image_size": 32, "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
             ("ViTImageProcessor", SQUARE), (4, 4, 32), 32),
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(folder, model, processor) of a case, as `save_pretrained` leaves it."""
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    made = {}

    def get(case):
        if case not in made:
            kind, config, (processor, settings), *_ = HF[case]
            kind = getattr(transformers, kind)
            folder = tmp_path_factory.mktemp(case)
            torch.manual_seed(0)
            model = kind(kind.config_class(**config)).eval()
            with torch.no_grad():  # the library's own init is too small to tell tokens apart
                for value in model.parameters():
                    value.add_(0.2 * torch.randn_like(value))
            model.save_pretrained(folder)
            processor = getattr(transformers, processor)(**settings)
            processor.save_pretrained(folder)
            made[case] = folder, model, processor
        return made[case]

    return get


def reference(model, x):
    """(tokens, vector) as the library computes them for one input in its own layout."""
    kind = type(model).__name__
    if kind in ("CLIPModel", "SiglipModel"):
        out = model.get_image_features(pixel_values=x)
        return out.last_hidden_state, out.pooler_output
    if kind == "VJEPA2Model":
        tokens = model(pixel_values_videos=x).last_hidden_state
        return tokens, tokens.mean(1)
    if kind == "VJEPA2ForVideoClassification":
        tokens = model.vjepa2(x, skip_predictor=True).last_hidden_state
        return tokens, model.pooler(tokens)
    if kind == "VideoMAEForVideoClassification":
        tokens = model.videomae(x).last_hidden_state
        return tokens, model.fc_norm(tokens.mean(1))
    if kind == "VideoMAEForPreTraining":
        tokens = model.videomae(x).last_hidden_state
        return tokens, tokens.mean(1)
    if kind == "VivitForVideoClassification":
        tokens = model.vivit(x).last_hidden_state
        return tokens, tokens[:, 0]
    if kind == "Dinov2ForImageClassification":
        tokens = model.dinov2(x).last_hidden_state
        return tokens, torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1)
    if kind in ("ViTForImageClassification", "ViTForMaskedImageModeling"):
        tokens = model.vit(x, interpolate_pos_encoding=model.config.image_size != 32).last_hidden_state
        return tokens, tokens[:, 0]
    if kind == "ResNetForImageClassification":
        out = model.resnet(x)
        return out.last_hidden_state.flatten(2).transpose(1, 2), out.pooler_output.flatten(1)
    out = model(x)
    pooled = getattr(out, "pooler_output", None)
    if pooled is None:
        pooled = out.last_hidden_state.mean(1) if kind == "VideoMAEModel" else out.last_hidden_state[:, 0]
    return out.last_hidden_state, pooled


@pytest.mark.parametrize("case", HF)
def test_hf_equals_the_library(saved, case):
    folder, model, _ = saved(case)
    grid, channels = HF[case][3:]
    net = create_backbone(f"hf:{folder}")
    net.keep = tuple(net.spec.outputs)
    clip = net.spec.reads == "rgb_clip"
    assert net.spec.name == f"hf:{folder.name}" and str(folder.parent) not in json.dumps(net.spec.to_json())
    assert net.spec.outputs["map" if clip else "spatial"] == (grid, "feature")
    assert net.spec.outputs["vector"] == ((channels,), "feature")
    assert net.weights_hash == file_hash(folder / "model.safetensors")
    assert net.weights_origin == f"folder:{folder.name}" and net.lineage[0]["dataset"] == "unknown"

    batch = inputs(net.spec, 2)
    x = net.normalise(torch.from_numpy(np.stack(batch["frames"])))
    with torch.inference_mode():
        tokens, vector = reference(model, x.transpose(1, 2) if clip else x)
    out = net.run(batch)
    np.testing.assert_allclose(out["vector"], vector, atol=2e-4 * float(vector.std()))
    patches = tokens[:, -int(np.prod(grid[:-1])) :]
    if case == "timesformer":  # rows, columns, time
        patches = patches.unflatten(1, (2, 2, 4)).movedim(3, 1).flatten(1, 3)
    ours = out["map" if clip else "spatial"].reshape(patches.shape)
    np.testing.assert_allclose(ours, patches, atol=2e-4 * float(patches.std()))
    if clip:
        np.testing.assert_allclose(out["spatial"], out["map"].mean(1), atol=1e-5)
    assert np.allclose(net(x[:1]).numpy(), out["map" if clip else "spatial"][:1], atol=1e-4)


@pytest.mark.parametrize("case", HF)
def test_hf_random_weights(saved, case):
    folder = saved(case)[0]
    net = create_network(f"hf:{folder}", "random:0")
    keeps_its_promises(net)
    again, other = (create_network(f"hf:{folder}", f"random:{seed}") for seed in (0, 1))
    assert net.weights_hash == again.weights_hash != other.weights_hash


@pytest.mark.parametrize("case", HF)
def test_hf_preprocessing_is_the_processors(saved, case):
    """Values: a black and a white picture. Sizes: a wide picture through the processor has the network's size."""
    folder, _, processor = saved(case)
    spec = network_spec(f"hf:{folder}")
    for value in (0, 255):
        frame = np.full((40, 60, 3), value, np.uint8)
        made = processor([frame] * 4 if spec.reads == "rgb_clip" else frame, return_tensors="np")
        pixels = next(iter(made.values()))
        assert pixels.shape[-2:] == spec.input_size
        ours = (value / 255 - np.array(spec.mean)) / np.array(spec.std)
        np.testing.assert_allclose(pixels.reshape(-1, 3, *spec.input_size)[0, :, 5, 5], ours, atol=2e-6)


def test_hf_clip_defaults_and_options(saved):
    folder = saved("videomae")[0]
    spec = network_spec(f"hf:{folder}")
    assert (spec.clip_len, spec.stride, spec.fps, spec.family) == (4, 1, 25.0, "videomae")
    assert spec.resize == {"mode": "short_side", "size": 32, "crop": 32}
    assert spec == network_spec(f"hf:{folder}") and spec.options["config"].startswith("sha256:")
    long = create_network(f"hf:{folder}", clip_len=8, stride=4, resize=squash(48))  # its position table is computed
    assert long.spec.outputs["map"] == ((4, 3, 3, 32), "feature") and long.run(inputs(long.spec, 1))["vector"].any()
    with pytest.raises(UserError, match="tubes of 2 frames"):
        network_spec(f"hf:{folder}", clip_len=5)
    with pytest.raises(UserError, match="layer must be"):
        network_spec(f"hf:{folder}", layer="11")
    with pytest.raises(UserError, match="no classifier"):
        network_spec(f"hf:{folder}", layer="logits")
    with pytest.raises(UserError, match="reads single frames"):
        network_spec(f"hf:{saved('vit')[0]}", clip_len=8)
    with pytest.raises(UserError, match="one size"):
        network_spec(f"hf:{folder}", resize={"mode": "none"})
    with pytest.raises(UserError, match=r"position_embeddings is \(1, 9, 32\), expected \(1, 17, 32\)"):
        create_network(f"hf:{saved('vivit')[0]}", clip_len=8)  # its position table is learned


def test_hf_logits_and_attention(saved):
    folder, model, _ = saved("videomae_classifier")
    net = create_network(f"hf:{folder}", layer="logits")
    assert net.spec.outputs == {"vector": ((7,), "feature")}
    batch = inputs(net.spec, 2)
    x = net.normalise(torch.from_numpy(np.stack(batch["frames"]))).transpose(1, 2)
    with torch.inference_mode():
        np.testing.assert_allclose(net.run(batch)["vector"], model(x).logits, atol=1e-4)
    eager, sdpa = (create_network(f"hf:{folder}", attention=kind) for kind in ("eager", "sdpa"))
    assert eager.module.config._attn_implementation == "eager" != sdpa.module.config._attn_implementation
    np.testing.assert_allclose(eager.run(batch)["vector"], sdpa.run(batch)["vector"], atol=1e-4)
    full = sdpa.run(batch)["vector"]
    half = sdpa.to("cpu", "bf16").run(batch)["vector"]
    cosine = (full * half).sum(1) / np.linalg.norm(full, axis=1) / np.linalg.norm(half, axis=1)
    assert cosine.min() >= TOLERANCES["bf16"]["cosine"] and not np.array_equal(full, half)


def test_hf_shards_and_card(saved, tmp_path):
    _, model, processor = saved("vit")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    processor.save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text(
        "---\nlicense: apache-2.0\ndatasets:\n- imagenet-1k\n- lab/Our-Set\n---\n# A model\n"
    )
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    whole, parts = create_network(f"hf:{saved('vit')[0]}"), create_network(f"hf:{tmp_path}")
    batch = inputs(whole.spec, 1)
    np.testing.assert_allclose(whole.run(batch)["vector"], parts.run(batch)["vector"], atol=1e-5)
    assert parts.weights_hash != whole.weights_hash and parts.spec.licence == "apache-2.0"
    assert [step["dataset"] for step in parts.lineage] == ["imagenet", "ourset"]
    shards[0].unlink()
    with pytest.raises(UserError, match=f"names {shards[0].name}, which"):
        create_network(f"hf:{tmp_path}")


def test_hf_own_weights(saved, tmp_path):
    folder, model, _ = saved("vit")
    other = type(model)(model.config).eval()
    other.save_pretrained(tmp_path / "tuned")
    net = create_network(f"hf:{folder}", str(tmp_path / "tuned"))
    file = tmp_path / "tuned" / "model.safetensors"
    assert net.weights_hash == file_hash(file) and net.weights_origin == "folder:tuned"
    assert create_network(f"hf:{folder}", str(file)).weights_hash == net.weights_hash
    assert net.load_published(str(folder)).weights_hash == create_network(f"hf:{folder}").weights_hash
    for weights, message in (
        (str(saved("dinov2")[0]), r"not a checkpoint of hf:.* \(ViTModel\); .* keys missing: .*; .* keys unexpected"),
        (str(tmp_path / "nothing"), "no such file or folder"),
        ("random:x", "random:SEED"),
    ):
        with pytest.raises(UserError, match=message):
            create_network(f"hf:{folder}", weights)


def test_hf_pickles_are_refused(saved, tmp_path):
    folder, model, processor = saved("vit")
    model.config.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert network_spec(f"hf:{tmp_path}").outputs["vector"] == ((32,), "feature")
    with pytest.raises(UserError, match="no model.safetensors .*code"):
        create_network(f"hf:{tmp_path}")
    with pytest.raises(UserError, match="pickle, which runs code"):
        create_network(f"hf:{folder}", str(tmp_path / "pytorch_model.bin"))
    assert create_network(f"hf:{tmp_path}", "random:0").weights_origin == "random:0"


def test_hf_wrong_folders(saved, tmp_path, monkeypatch):
    folder, model, _ = saved("vit")
    with pytest.raises(UserError, match="no config.json"):
        network_spec(f"hf:{tmp_path}")
    with pytest.raises(UserError, match="no such folder"):
        network_spec(f"hf:{tmp_path}/nowhere")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not a model configuration"):
        network_spec(f"hf:{tmp_path}")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "videomea", "auto_map": {"AutoModel": "m.M"}}))
    with pytest.raises(UserError, match=r"no model_type 'videomea'.*near: videomae.*trust_remote_code is off"):
        network_spec(f"hf:{tmp_path}")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="bert is no image or video model"):
        network_spec(f"hf:{tmp_path}")

    # a configuration alone: its preprocessing is assumed, so real weights are refused
    model.save_pretrained(tmp_path)
    spec = network_spec(f"hf:{tmp_path}")
    assert spec.options["preprocessing"] == "assumed" and spec.resize == squash(32)
    with pytest.raises(UserError, match="no preprocessor_config.json"):
        create_network(f"hf:{tmp_path}")
    keeps_its_promises(create_network(f"hf:{tmp_path}", "random:2"))

    # hub ids: not in the cache; near ones there are named; or below CLIPBANK_WEIGHTS
    with pytest.raises(UserError, match="could not be fetched from the hub .*Download it"):
        network_spec("hf:lab/vit-small")
    from huggingface_hub import constants

    (tmp_path / "cache" / "models--lab--vit-tiny").mkdir(parents=True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="did you mean lab/vit-tiny"):
        network_spec("hf:lab/vit-tini")
    (tmp_path / "weights" / "lab").mkdir(parents=True)
    (tmp_path / "weights" / "lab" / "vit-tiny").symlink_to(folder)
    monkeypatch.setenv("CLIPBANK_WEIGHTS", str(tmp_path / "weights"))
    net = create_network("hf:lab/vit-tiny")
    assert net.spec.name == "hf:lab/vit-tiny" and net.run(inputs(net.spec, 1))["vector"].any()


# -- a lab's own code ----------------------------------------------------------------------------------------------

OWN = """
import torch
from extract.networks import Network, NetworkSpec

def spec_of(reads, shape, **more):
    return NetworkSpec(name="mine", kind="backbone", reads=reads, resize={"mode": "squash", "size": 8},
                       mean=(0.5,) * 3, std=(0.5,) * 3, outputs={"vector": ((4,), "feature"), **shape}, **more)

def clips(channels=4):
    return Network(spec_of("rgb_clip", {"map": ((2, 2, 2, channels), "feature")}, clip_len=4),
                   torch.nn.Conv3d(3, channels, (2, 4, 4), (2, 4, 4)))

def plain():
    torch.manual_seed(0)
    module = torch.nn.Conv2d(3, 4, 4, 4)
    module.spec = spec_of("rgb_frame", {"spatial": ((2, 2, 4), "feature")})
    return module

def wrong():
    return torch.nn.Conv2d(3, 4, 4, 4)
"""


def test_own_networks_for_clips_and_frames(tmp_path):
    (tmp_path / "lab.py").write_text(OWN)
    net = create_backbone(f"py:{tmp_path}/lab.py:clips")
    net.keep = ("map", "vector")
    out = net.run(inputs(net.spec, 2))
    assert out["map"].shape == (2, 2, 2, 2, 4) and net.spec.code_hash.startswith("sha256:")
    net = create_network(f"py:{tmp_path}/lab.py:plain")  # a torch module that carries its spec
    assert net.spec.name == "py:lab.py:plain" and net.weights_hash
    assert net.run(inputs(net.spec, 2))["spatial"].shape == (2, 2, 2, 4)
    with pytest.raises(UserError, match="torch module with a `spec`, got Conv2d"):
        create_network(f"py:{tmp_path}/lab.py:wrong")
