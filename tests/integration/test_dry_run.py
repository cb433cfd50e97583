"""Whatever a run refuses, its dry run refuses: with exit code 2, by the key, leaving nothing."""

from __future__ import annotations

import pytest

FINETUNE = {
    "augment.rand_augment_magnitude=11": "augment.rand_augment_magnitude is 11",
    "views.short_side=20": "views.short_side is 20: needed is at least 32",
    "train.freeze_stages=9": "train.freeze_stages is 9: needed is from 0 to 4",
    "train.accumulation_steps=3": "train.accumulation_steps=3",
    "model.image_size=33": "input_size is (4, 33, 33)",
    "model.overrides.q_pool=4": "q_pool is 4",
    "model.name=hiera_bse_16x224": "'hiera_bse_16x224' is unknown",
    "device=tpu": "device is 'tpu'",
}
PRETRAIN = {
    "masking.mask_ratio=0.97": "keeps nothing of 8 units",
    "model.decoder_heads=3": "model.decoder_heads is 3: needed is a divisor",
    "model.overrides.mask_unit=[1,3,3]": "mask_unit is (1, 3, 3)",
    "optim.layer_decay=0.5": "optim.layer_decay is 0.5: needed is 1.0 in pretraining",
}


@pytest.mark.parametrize("override", FINETUNE)
def test_finetune(commands, tmp_path, override):
    for flags in (["--dry-run"], []):
        result = commands.run(*commands.finetune(tmp_path / "run", override, *flags))
        assert result.code == 2
        result.reports(FINETUNE[override])
        if flags:
            assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("override", PRETRAIN)
def test_pretrain(commands, tmp_path, override):
    for flags in (["--dry-run"], []):
        result = commands.run(*commands.pretrain(tmp_path / "run", override, *flags))
        assert result.code == 2
        result.reports(PRETRAIN[override])
        if flags:
            assert not (tmp_path / "run").exists()


def test_the_first_batch_is_read(commands, list_of, tmp_path):
    videos = [(commands.toy / "text.mp4", "left"), (commands.toy / "train_1.mp4", "right")]
    data = f"data.train={list_of(tmp_path / 'train.csv', videos)}"
    result = commands.run(*commands.finetune(tmp_path / "run", data, "--dry-run"))
    assert result.code == 3
    assert "cannot be read: " in result.out
    assert "text.mp4" in result.out
    assert not (tmp_path / "run").exists()
