"""`tools/gpu_check.sh`: all sections in small, sections that fail, and what is on the disk when."""

import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from gpu_checks import __main__ as program
from gpu_checks import kernels, machine
from gpu_checks.page import OutOfTime

ROOT = Path(__file__).parents[2]
TITLES = {
    "environment": "Machine",
    "tests": "Tests behind the marker gpu",
    "speed": "Ours and the official package",
    "profiles": "Kernels",
    "commands": "Commands, from H.264 files",
    "peers": "Other models",
    "decoders": "Decoders",
    "candidates": "Candidates for kernels",
}


def check(folder, *options, python=sys.executable):
    return subprocess.run(
        [ROOT / "tools" / "gpu_check.sh", folder, *options],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHON": str(python), "OMP_NUM_THREADS": "1"},
    )


def test_in_small_every_section_writes_its_tables(tmp_path):
    done = check(tmp_path, "--smoke")
    results = (tmp_path / "results.md").read_text()
    assert done.returncode == 0, results + done.stderr
    assert results.startswith("## GPU check: ")
    assert "Commit " in results.splitlines()[2]
    assert "tools/gpu_check.sh" in results.splitlines()[2]
    places = [results.index(f"\n### {title}\n") for title in TITLES.values()]
    assert places == sorted(places)
    for name in TITLES:
        page = (tmp_path / f"{name}.md").read_text()
        assert page.strip() in results
        assert "|--" in page.replace(":", "-") or name == "tests", page
    assert "`pytest -m gpu`: " in results
    assert "skipped" in (tmp_path / "tests.md").read_text() or "passed" in results
    for row in (
        "| inference, hiera_tiny_224 ",
        "| finetuning, hiera_tiny_224 ",
        "| pretraining, hiera_tiny_224 ",
        "| `aten::",
        "| seconds until the first batch",
        "| clips/s from end to end",
        "| finetune ",
        "| pretrain ",
        "| resnet50 ",
        "| pyav ",
        "| bias gradient ",
        "| patch embedding ",
        "the article's claims beside this run",
    ):
        assert row in results, row


def test_a_section_that_fails_does_not_stop_the_others(tmp_path):
    """The first one fails, with a line of a package that was carried along in a wheel."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "carried-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried.py", "TEXT = 'no such device'")
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        "*environment*) "
        f'exec {sys.executable} -c "import carried, sys; sys.exit(carried.TEXT)" ;;\n'
        "esac\n"
        f'exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    folder = tmp_path / "a folder"
    only = ("--only", "candidates,environment", "--wheels", wheels)
    done = check(folder, "--smoke", *only, python=python)
    assert done.returncode == 1
    results = (folder / "results.md").read_text()
    failure = results.index("**Failed** with exit code 1. The last lines of its output:")
    assert results.index("### Environment") < failure < results.index("no such device")
    assert "| bias gradient " in results[failure:]
    assert "### Decoders" not in results


@pytest.mark.parametrize("line", [[], ["a", "b"], ["a", "--only", "all"], ["a", "--wheels"]])
def test_wrong_usage_ends_with_2(tmp_path, line):
    done = subprocess.run(
        [ROOT / "tools" / "gpu_check.sh", *line],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert "sections: environment tests speed" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "python", "reason"),
    [
        ([], "no_gpu", "torch finds no CUDA device; with --smoke it needs none"),
        (["--smoke"], "no_torch", "no_torch does not import torch"),
        (["--smoke", "--wheels", "nowhere"], "no_gpu", "--wheels nowhere has no wheels"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_measured(tmp_path, line, python, reason):
    for name, end in {"no_gpu": "echo False", "no_torch": "exit 1"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{end}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        [ROOT / "tools" / "gpu_check.sh", "results", *line],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHON": str(tmp_path / python)},
    )
    assert done.returncode == 2
    assert reason in done.stderr
    assert not (tmp_path / "results").exists()


def section(monkeypatch, tmp_path, function):
    """Runs a section that is `function`; returns its exit code and its page."""
    monkeypatch.setattr(machine, "environment", function)
    monkeypatch.setattr(machine, "set_up", lambda smoke: None)
    line = ["gpu_checks", "environment", str(tmp_path), "--seconds", "1", "--smoke"]
    monkeypatch.setattr(sys, "argv", line)
    return program.main(), (tmp_path / "environment.md").read_text()


def test_a_section_keeps_what_it_measured_until_its_time_is_over(monkeypatch, tmp_path):
    def slow(page, folder, smoke):
        page.table("what", "time").row("first", 1)
        assert "| first" in (folder / "environment.md").read_text()
        try:
            time.sleep(30)
        except Exception:  # as code does that records errors and goes on
            page.text("went on")

    code, page = section(monkeypatch, tmp_path, slow)
    assert code == 0
    assert "| first" in page
    assert page.endswith("The rest was not measured: the 1 s of this section were over.\n")
    assert "went on" not in page


TALKATIVE = """
import subprocess, sys, time
other = subprocess.Popen(["sleep", "20"])  # which has the pipe, too
try:
    print("begins", flush=True)
    time.sleep(20)
except KeyboardInterrupt:
    print("FAILED one")
"""


def test_a_program_whose_time_is_over_says_what_it_found(monkeypatch, tmp_path):
    def run(page, folder, smoke):
        lines = []
        try:
            machine.run([sys.executable, "-c", TALKATIVE], lines.append)
        except OutOfTime:
            page.failure(" ".join(lines))
            raise

    monkeypatch.setattr(machine, "LAST_WORDS_SEC", 2)
    start = time.monotonic()
    code, page = section(monkeypatch, tmp_path, run)
    assert time.monotonic() - start < 10
    assert code == 1
    assert "begins FAILED one" in page


def test_what_is_missing_though_it_should_not_be_fails_the_check(monkeypatch, tmp_path):
    code, page = section(monkeypatch, tmp_path, lambda page, *_: page.failure("extract ended"))
    assert code == 1
    assert "extract ended" in page


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NTN", "product"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "product"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu>", "product"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7", "attention"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<96>>", "attention"),
        ("void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<float>", "norm"),
        ("void at::native::GammaBetaBackwardCUDAKernel<float>", "norm"),
        ("triton_per_fused_add_native_layer_norm_3", "norm"),
        (
            "at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda>",
            "copy, cast",
        ),
        ("triton_poi_fused__to_copy_0", "copy, cast"),
        ("triton_poi_fused__to_copy_add_gelu_2", "other"),
        ("triton_poi_fused__to_copy_addmm_1", "other"),
        ("triton_poi_fused__scaled_dot_product_flash_attention_clone_3", "copy, cast"),
        (
            "void elementwise_kernel<128, 4, gpu_kernel_impl_nocast<CUDAFunctor_add<float>>>",
            "other",
        ),
        ("unrolled_elementwise_kernel<CUDAFunctor_add<BFloat16>, LoadWithoutCast>", "other"),
        ("void at::native::vectorized_elementwise_kernel<4, GeluCUDAKernelImpl>", "other"),
    ],
)
def test_kernels_are_of_a_kind(kernel, kind):
    assert kernels.kind_of(kernel) == kind
