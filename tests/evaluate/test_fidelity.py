"""FID and its relatives: torch-fidelity's numbers, named so only where they are so, with N and intervals."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from evaluate_worlds import slick, write_images

from dakd.config import FidelityConfig, build_config
from dakd.evaluate import extractors, fidelity
from dakd.evaluate.extractors import Extractor, SmallRandomConv, import_torch_fidelity, open_extractor, to_rgb
from dakd.evaluate.fidelity import (
    Features,
    compare_fidelity,
    extract_features,
    library_values,
    score_features,
    split_groups,
)
from dakd.evaluate.pairs import fidelity_notes, fidelity_rows
from dakd.evaluate.windows import choose_windows

torch_fidelity = import_torch_fidelity()
SMALL = FidelityConfig(extractor="small", bootstrap=40)
SIZE = (32, 32)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """26 real images, 24 synthetic ones of half the looks."""
    folders = [tmp_path_factory.mktemp(name) for name in ("real", "synthetic")]
    real = write_images(folders[0], [slick(seed, 32) for seed in range(26)])
    return real, write_images(folders[1], [slick(seed, 32, looks=4.0) for seed in range(100, 124)])


@pytest.fixture(scope="module")
def small(sets) -> Extractor:
    return open_extractor(SMALL, "cpu")


def compare(sets, extractor, cache, cfg=SMALL, seed=0) -> dict:
    return compare_fidelity(cfg, seed, *sets, extractor, cache)


def fake_features(num_images: int, width: int, seed: int, shift: float = 0.0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(num_images, 1008, generator=generator)
    return Features(torch.randn(num_images, width, generator=generator) + shift, logits, np.arange(num_images))


# --- the small extractor ----------------------------------------------------------------------------------------------


def test_numbers_of_the_small_extractor_bear_no_name_of_inceptions(sets, small, tmp_path):
    found = compare(sets, small, tmp_path)
    assert list(found["metrics"]) == ["fd_small", "kd_small", "precision_small", "recall_small"]
    assert found["num_images"] == 24 and found["images_in_set"] == {"real": 26, "synthetic": 24}
    text = " ".join([*(str(row) for row in fidelity_rows(found)[1]), *fidelity_notes(found)])
    rest = text.replace("not FID or KID", "")
    assert "Frechet distance (small-random-conv)" in rest
    assert not any(name in rest for name in ("FID", "KID", "IS,", "Inception score"))
    assert not found["is_standard"] and json.loads(json.dumps(found, allow_nan=False)) == found


def test_the_small_extractor_is_the_same_everywhere_and_sees_grain(small):
    # The filters are part of every table made with them.
    assert small.identity[:12] == "ee4cb3883a4e"
    image = torch.as_tensor(np.stack([slick(0, 64)[0], slick(0, 64, looks=2.0)[0]]))[:, None]
    found = SmallRandomConv()(image)
    assert found.shape == (2, 144) and small.widths == (144,)
    spread = slice(16, 32)  # deviations of the first level
    assert (found[1, spread] > found[0, spread]).all()
    assert torch.allclose(SmallRandomConv()(image // 2), SmallRandomConv()(image // 2 + 60), atol=1e-5)


def test_more_grain_is_further_off_than_chance(sets, small, tmp_path):
    found = compare(sets, small, tmp_path)
    one = found["metrics"]["fd_small"]
    assert one["low"] < one["value"] < one["high"] and one["bias"] > 0
    assert found["halves"]["num_images"] == 12 and found["halves"]["synthetic"] > 2 * found["halves"]["real"]


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_numbers_are_torch_fidelitys_on_the_same_images(sets, small, tmp_path):
    """Against its own pipeline from images to numbers, with the extractor registered there."""

    class Registered(torch_fidelity.FeatureExtractorBase):
        def __init__(self, name, features_list, **kwargs):
            super().__init__(name, features_list)
            self.net = SmallRandomConv()

        @staticmethod
        def get_provided_features_list():
            return ("pooled",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "pooled"

        def forward(self, image):
            return (self.net(image[:, :1]),)

    class Images(torch.utils.data.Dataset):
        def __init__(self, shard_set, places):
            self.shard_set, self.places = shard_set, places

        def __len__(self):
            return len(self.places)

        def __getitem__(self, place):
            return to_rgb(torch.as_tensor(self.shard_set.read(self.places[place][0]).sar)[None, None])[0]

    torch_fidelity.register_feature_extractor("dakd-test", Registered)
    real, synthetic = (Images(one, choose_windows(one, SIZE, 24, 0)) for one in sets)
    wanted = torch_fidelity.calculate_metrics(
        input1=synthetic, input2=real, fid=True, kid=True, prc=True, feature_extractor="dakd-test", cuda=False,
        verbose=False, cache=False, save_cpu_ram=True, batch_size=8, kid_subset_size=24, kid_subsets=1,
    )  # fmt: skip
    found = compare(sets, small, tmp_path)["metrics"]
    assert found["fd_small"]["value"] == pytest.approx(wanted["frechet_inception_distance"], rel=1e-4)
    assert found["kd_small"]["value"] == pytest.approx(wanted["kernel_inception_distance_mean"], rel=1e-4)
    assert found["precision_small"]["value"] == wanted["precision"]
    assert found["recall_small"]["value"] == wanted["recall"]


def test_precision_is_of_the_synthetic_and_recall_of_the_real_images():
    # Synthetic images all in one spot of the real ones: precise, and they miss nearly all.
    real = Features(torch.randn(40, 4, generator=torch.Generator().manual_seed(0)), None, np.arange(40))
    synthetic = Features(real.pooled[:1] + 1e-4 * torch.arange(30)[:, None], None, np.arange(30))
    values, _ = library_values(real, synthetic)
    assert values["precision"] == 1 and values["recall"] < 0.1


def test_scores_of_inception_have_their_names_intervals_and_both_splits():
    isc = pytest.importorskip("torch_fidelity.metric_isc")
    inception = Extractor("inception-v3-compat", "", "0", (16, 1008), lambda sar: (sar,))
    real, synthetic = fake_features(40, 16, 0), fake_features(40, 16, 1, shift=0.5)
    found = score_features(real, synthetic, inception, 0, 40)["metrics"]
    names = ["fid", "kid", "precision", "recall", "inception_score", "inception_score_1_split"]
    assert list(found) == names
    for key, splits in (("inception_score", 10), ("inception_score_1_split", 1)):
        for value, one in ((found[key]["value"], synthetic), (found[key]["real"], real)):
            assert value == isc.isc_features_to_metric(one.logits, splits)[isc.KEY_METRIC_ISC_MEAN]
        assert 1 <= found[key]["low"] < found[key]["value"] < found[key]["high"]
    assert found["kid"]["subset_size"] == 40 and found["kid"]["subsets"] == 1


def test_windows_of_one_image_are_drawn_together():
    groups = np.array([0, 0, 0, 1, 2, 2])
    weights = fidelity._group_weights(groups, 200, np.random.default_rng(0))
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, 4] == weights[:, 5]).all()
    assert (weights[:, [0, 3, 4]].sum(axis=1) == 3).all()
    together = fake_features(60, 4, 0)
    clustered = replace(together, pooled=together.pooled[np.arange(60) // 6], groups=np.arange(60) // 6)
    apart = replace(clustered, groups=np.arange(60))
    other = fake_features(60, 4, 1)
    wide, narrow = (fidelity._resample(one, other, 0, 60)["fd"] for one in (clustered, apart))
    assert np.std(wide) > 1.5 * np.std(narrow)


def test_halves_of_the_real_images_share_no_image():
    groups = np.repeat(np.arange(11), [3, 1, 2, 2, 1, 4, 1, 1, 2, 3, 2])
    first, second = split_groups(groups, np.random.default_rng(0))
    assert sorted([*first, *second]) == list(range(22)) and not set(groups[first]) & set(groups[second])
    assert len(set(groups[first])) == 5
    found = fidelity._compare_halves(replace(fake_features(22, 4, 0), groups=groups), fake_features(22, 4, 1), 0)
    assert 0 < found["num_images"] <= 11


# --- which images, kept features --------------------------------------------------------------------------------------


def test_features_are_kept_and_made_again_for_other_sets_seeds_and_damaged_files(sets, small, tmp_path):
    calls = []

    def counted(sar):
        calls.append(len(sar))
        return small.features(sar)

    extractor = replace(small, features=counted)
    first = compare(sets, extractor, tmp_path)
    assert sum(calls) == 48 and len(list(tmp_path.glob("*.npz"))) == 2
    assert compare(sets, extractor, tmp_path) == first and sum(calls) == 48
    compare((sets[1], sets[1]), extractor, tmp_path)
    assert sum(calls) == 72  # the same images as "real" are another file
    compare(sets, replace(extractor, identity="other"), tmp_path)
    assert sum(calls) == 120
    for path in tmp_path.glob("*.npz"):
        path.write_bytes(path.read_bytes()[:100])
    assert compare(sets, extractor, tmp_path) == first and sum(calls) == 168
    for path in tmp_path.glob("*.npz"):
        path.write_bytes(b"")
    assert compare(sets, extractor, tmp_path) == first and sum(calls) == 216
    real, synthetic = (next(tmp_path.glob(f"{name}-*.npz")) for name in ("real", "synthetic"))
    shutil.copy(real, synthetic)  # whole features, of other images
    assert compare(sets, extractor, tmp_path) == first and sum(calls) == 240


def test_a_stated_number_of_images_is_taken_of_both(sets, small, tmp_path):
    found = compare(sets, small, tmp_path, SMALL.model_copy(update={"num_images": 20}))
    assert found["num_images"] == 20 and fidelity_rows(found)[1][0][-1] == 20
    with pytest.raises(ValueError, match="num_images to at most 26"):
        compare(sets, small, tmp_path, SMALL.model_copy(update={"num_images": 27}))


def test_batches_and_ranks_do_not_matter(sets, small):
    windows = choose_windows(sets[0], SIZE, 26, 0)
    one, other = (extract_features(sets[0], windows, SIZE, 0, small, "real", batch_size=size) for size in (1, 26))
    assert torch.allclose(one.pooled, other.pooled, atol=1e-5) and one.logits is None


def test_too_few_images_and_no_extractor_leave_it_absent(sets, small, tmp_path):
    few = write_images(tmp_path / "few", [slick(seed, 32) for seed in range(19)])
    assert "19 images of each set; expected at least 20" in compare((sets[0], few), small, tmp_path)["absent"]
    assert "extractor is none" in compare(sets, None, tmp_path)["absent"]
    with pytest.raises(ValueError, match="num_images"):
        build_config({"name": "a", "evaluate": {"fidelity": {"num_images": 19}}})


def test_the_text_says_that_few_images_make_fid_large():
    inception = Extractor("inception-v3-compat", "", "0", (64, 1008), lambda sar: (sar,))
    facts = {"num_images": 40, "resamples": 20, "confidence": 0.95}
    facts = facts | score_features(fake_features(40, 64, 0), fake_features(40, 64, 1), inception, 0, 20)
    facts["note"] = fidelity._note_on_size(fake_features(40, 64, 0))
    assert "40 images are fewer than the 64 features" in fidelity_notes(facts)[1]
    assert fidelity._note_on_size(fake_features(65, 64, 0)) == ""
    assert [row[0] for row in fidelity_rows(facts)[1]][:2] == ["FID", "KID"]


# --- InceptionV3 ------------------------------------------------------------------------------------------------------


def inception(weights=None) -> FidelityConfig:
    return FidelityConfig(extractor="inception", weights=weights and str(weights), bootstrap=40)


def test_weights_that_are_absent_damaged_or_another_nets_are_refused(tmp_path):
    absent, damaged, other = (tmp_path / name for name in ("absent.pth", "damaged.pth", "other.pth"))
    damaged.write_bytes(b"no weights")
    torch.save({"fc.weight": torch.zeros(1000, 2048)}, other)
    remedy = r".*weights-inception-2015-12-05-6726825d\.pth; set evaluate\.fidelity\.weights"
    for path, problem in ((absent, "no weights"), (damaged, "cannot be read"), (other, "another net")):
        with pytest.raises(ValueError, match=problem + remedy):
            open_extractor(inception(path), "cpu")


def test_weights_run_no_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    torch.save({"fc.weight": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        open_extractor(inception(tmp_path / "trap.pth"), "cpu")
    assert not (tmp_path / "sprung").exists()


def test_without_a_network_the_error_names_the_file_its_place_and_the_setting(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", offline)
    with pytest.raises(RuntimeError, match="cannot be downloaded") as caught:
        open_extractor(inception(), "cpu")
    for part in ("https://github.com/toshas/torch-fidelity", extractors.INCEPTION_FILE, "evaluate.fidelity.weights"):
        assert part in str(caught.value)


def test_a_damaged_download_is_to_be_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / extractors.INCEPTION_FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half of it")
    with pytest.raises(ValueError, match=f"cannot be read as weights .* remove {path}"):
        open_extractor(inception(), "cpu")


def test_without_torch_fidelity_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(RuntimeError, match=r"pip install -e '\.\[eval\]'"):
        open_extractor(SMALL, "cpu")
    assert open_extractor(FidelityConfig(), "cpu") is None


@pytest.mark.slow
def test_inception_runs_from_a_users_weights_and_other_weights_give_no_fid(sets, tmp_path, monkeypatch):
    """Random weights: all of the protocol but its meaning."""
    from torch_fidelity import feature_extractor_inceptionv3 as library

    torch.manual_seed(0)
    monkeypatch.setattr(library.FeatureExtractorInceptionV3, "load_state_dict", lambda net, state: None)
    monkeypatch.setattr(library, "load_state_dict_from_url", lambda *args, **kwargs: {})
    net = library.FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"])
    monkeypatch.undo()
    path = tmp_path / "weights.pth"
    torch.save(net.state_dict(), path)
    cfg = inception(path).model_copy(update={"num_images": 20})
    extractor = open_extractor(cfg, "cpu")
    image = torch.as_tensor(sets[0].read(0).sar)[None, None]
    pooled, logits = extractor.features(image)
    assert torch.equal(pooled, net(image.expand(-1, 3, -1, -1))[0]) and logits.shape == (1, 1008)
    assert pooled.std() > 0
    found = compare(sets, extractor, tmp_path, cfg)
    assert "fd_other_weights" in found["metrics"] and not {"fid", "inception_score"} & set(found["metrics"])
    assert "are not those of weights-inception" in found["note"] and "fewer than the 2048" in found["note"]
    # The same file, taken for the standard one, gives the names.
    monkeypatch.setattr(extractors, "_INCEPTION_HASH", extractor.identity[:8])
    named = compare(sets, open_extractor(cfg, "cpu"), tmp_path, cfg)["metrics"]
    assert named["fid"]["value"] == found["metrics"]["fd_other_weights"]["value"]
    assert named["inception_score"]["value"] >= 1
