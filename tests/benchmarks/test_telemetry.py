"""Telemetry on tegrastats lines of five module families, on a prepared device root, and on sources that break.

No Jetson was at hand. The lines have the format of tegrastats on those modules; where they come from was not noted, so none
of them counts as recorded from a device, and what passes here has yet to be tried on one. The same holds for the files of the
device root and the stub of NVML; `test_this_machines_cpu` and `test_another_process_is_seen` look at the real machine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtkd_edge.benchmarks.telemetry import SOURCES, Reading, Sampler, Source
from dtkd_edge.benchmarks.telemetry.cpu import CpuSource, parse_cpuinfo, parse_stat
from dtkd_edge.benchmarks.telemetry.jetson import (
    jetpack,
    parse_l4t,
    parse_power_mode,
    parse_tegrastats,
)
from dtkd_edge.benchmarks.telemetry.nvidia import decode_slowdowns, open_nvidia
from dtkd_edge.deploy.backends.devices import jetson_model, nvidia_gpus

NANO = (
    "RAM 1409/3964MB (lfb 28x4MB) SWAP 0/1982MB (cached 0MB) IRAM 0/252kB(lfb 252kB) CPU [22%@518,67%@518,off,off] "
    "EMC_FREQ 0%@1600 GR3D_FREQ 0%@76 APE 25 PLL@28.5C CPU@32C PMIC@50C GPU@30.5C AO@39.5C thermal@31.25C "
    "POM_5V_IN 2003/2003 POM_5V_GPU 0/0 POM_5V_CPU 320/320"
)
XAVIER_NX = (
    "RAM 2450/7773MB (lfb 951x4MB) SWAP 0/3886MB (cached 0MB) CPU [5%@1190,3%@1190,off,off,off,off] EMC_FREQ 0%@1600 "
    "GR3D_FREQ 12%@114 VIC_FREQ 0%@115 APE 150 MTS fg 0% bg 1% AO@35.5C GPU@35.5C PMIC@50C AUX@35C CPU@36.5C thermal@35.9C "
    "VDD_IN 2912/2950 VDD_CPU_GPU_CV 406/406 VDD_SOC 893/893"
)
AGX_XAVIER = (
    "RAM 1545/31919MB (lfb 7400x4MB) SWAP 2/15959MB (cached 1MB) CPU [0%@1190,1%@1190,off,off] EMC_FREQ 0%@1331 "
    "GR3D_FREQ 0%@114 VIC_FREQ 115 APE 150 AUX@36C CPU@36.5C thermal@35.7C Tboard@37C AO@35C GPU@35C Tdiode@38.75C PMIC@50C "
    "GPU 467mW/467mW CPU 467mW/467mW SOC 1245mW/1245mW CV 0mW/0mW VDDRQ 311mW/311mW SYS5V 2768mW/2768mW"
)
ORIN_NANO = (
    "09-21-2025 15:38:17 RAM 3645/7620MB (lfb 63x4MB) SWAP 236/3810MB (cached 0MB) "
    "CPU [1%@729,1%@729,4%@729,1%@729,0%@729,0%@729] EMC_FREQ 0%@204 GR3D_FREQ 63%@[305] NVDEC off NVJPG off NVJPG1 off VIC off "
    "OFA off APE 200 cpu@44.125C soc2@43.375C soc0@42.125C gpu@44.531C tj@44.531C soc1@43.156C "
    "VDD_IN 2957mW/2957mW VDD_CPU_GPU_CV 486mW/486mW VDD_SOC 1012mW/1012mW"
)
ORIN_NANO_7 = (
    "09-01-2026 09:25:18 RAM 5739/7546MB (lfb 1x2MB) SWAP 2047/2048MB (cached 209MB) CPU [72%@1728,75%@1728,88%@1728] "
    "GR3D_FREQ 33% cpu@50C/50C soc2@47.937C/47.937C gpu@48.75C/48.75C tj@50C/50C VDD_IN 9761mW/9761mW/9761mW "
    "VDD_CPU_GPU_CV 4238mW/4238mW/4238mW VDD_SOC 1825mW/1825mW/1825mW"
)
AGX_ORIN = (
    "04-11-2025 10:36:27 RAM 4321/62801MB (lfb 1759x4MB) SWAP 19/31400MB (cached 0MB) CPU [0%@729,0%@2201] EMC_FREQ 0%@2133 "
    "GR3D_FREQ 0%@[1300,1290] VIC_FREQ 729 APE 174 CV0@-256C CPU@44.562C Tboard@32C GPU@-256C tj@44.343C "
    "VDD_GPU_SOC 2340mW/2340mW VDD_CPU_CV 390mW/390mW VIN_SYS_5V0 4025mW/4025mW NC 0mW/0mW VDDQ_VDD2_1V8AO 301mW/301mW NC 0mW/0mW"
)
THOR = (
    "07-02-2026 10:00:00 RAM 18207/125771MB (lfb 3x4MB) SWAP 0/0MB (cached 0MB) CPU [3%@2601,1%@2601,off] gpu@62.906C/62.906C "
    "cpu@61.5C/61.5C tj@63C/63C soc012@60.1C/60.1C VDD_GPU -392mW/12000mW/12000mW VDD_CPU_SOC_MSS 6510mW/6510mW/6510mW "
    "VIN_SYS_5V0 6520mW/6520mW/6520mW VIN 23100mW/23100mW/23100mW"
)


@pytest.mark.parametrize(
    ("line", "watts", "cpu_mhz", "gpu_mhz", "gpu_c"),
    [
        (NANO, 2.003, 518, 76, 30.5),
        (XAVIER_NX, 2.912, 1190, 114, 35.5),
        (AGX_XAVIER, 0.467 + 0.467 + 1.245 + 0.311 + 2.768, 1190, 114, 35),
        (ORIN_NANO, 2.957, 729, 305, 44.531),
        (ORIN_NANO_7, 9.761, 1728, None, 48.75),
        (AGX_ORIN, 2.34 + 0.39 + 4.025, 1465, 1300, None),
        (THOR, 23.1, 2601, None, 62.906),
    ],
    ids=["nano", "xavier-nx", "agx-xavier", "orin-nano", "orin-nano-jp7", "agx-orin", "thor"],
)
def test_tegrastats(line: str, watts: float, cpu_mhz: float, gpu_mhz: float | None, gpu_c: float | None) -> None:
    got = parse_tegrastats(line)
    assert got.power_w == pytest.approx(watts)
    assert got.clocks_mhz["cpu"] == pytest.approx(cpu_mhz)
    assert got.clocks_mhz.get("gpu") == gpu_mhz
    assert got.temperatures_c.get("gpu") == gpu_c
    assert "pmic" not in got.temperatures_c and "NC" not in got.watts
    assert all(-50 < t < 120 for t in got.temperatures_c.values())
    assert got.ram_mb is not None and got.ram_mb[0] < got.ram_mb[1]


def test_tegrastats_details() -> None:
    assert parse_tegrastats(ORIN_NANO).gpu_load == 63
    assert parse_tegrastats(ORIN_NANO_7).gpu_load == 33
    assert parse_tegrastats(THOR).gpu_load is None
    assert parse_tegrastats(THOR).watts["VDD_GPU"] == -0.392
    assert parse_tegrastats(NANO).watts == {"POM_5V_IN": 2.003, "POM_5V_GPU": 0.0, "POM_5V_CPU": 0.32}  # RAM is no rail


@given(st.text(max_size=200))
def test_strange_lines_never_raise(line: str) -> None:
    parse_tegrastats(line)
    parse_tegrastats(ORIN_NANO[: len(line)] + line)


def test_l4t_and_power_mode() -> None:
    assert parse_l4t("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64") == "36.4.3"
    assert parse_l4t("something else") is None
    assert [jetpack(v) for v in ("32.7.1", "35.4.1", "36.4.3", "38.2.0", "39.2.0", None, "99.1")] == [
        "4",
        "5",
        "6",
        "7",
        "7",
        None,
        None,
    ]
    assert parse_power_mode("NV Power Mode: MAXN_SUPER\n2\n") == "MAXN_SUPER"
    assert parse_power_mode("") is None


def test_slowdown_bits() -> None:
    assert decode_slowdowns(0x1 | 0x2 | 0x100) == set()  # idle and set clocks
    assert decode_slowdowns(0x4 | 0x40) == {"software power cap", "hardware thermal slowdown"}


def test_nvml_where_there_is_no_gpu_is_no_source() -> None:
    source = open_nvidia()
    if source is not None:  # a machine with a GPU
        assert source.facts()["gpu"]
        assert source.read().clocks_mhz
        source.close()


NVML = r"""
#include <stdint.h>
#include <string.h>
typedef struct { unsigned long long total, free, used; } memory_t;
#define NOT_SUPPORTED 3
int nvmlInitWithFlags(unsigned flags) { return 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return "Not Supported"; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **handle) { *handle = (void *)(uintptr_t)(i + 1); return 0; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *id, void **h) {
  *h = (void *)(uintptr_t)(1 + !strcmp(id, "0000:65:00.0")); return 0; }
int nvmlDeviceGetHandleByUUID(const char *id, void **h) { *h = (void *)(uintptr_t)(1 + !strcmp(id, "GPU-second")); return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { strncpy(text, "580.95.05", size); return 0; }
int nvmlDeviceGetName(void *h, char *text, unsigned size) {
  strncpy(text, h == (void *)2 ? "NVIDIA Second" : "NVIDIA First", size); return 0; }
int nvmlDeviceGetMemoryInfo(void *h, memory_t *m) { m->total = 80ULL << 30; m->free = m->used = 0; return 0; }
int nvmlDeviceGetCudaComputeCapability(void *h, int *major, int *minor) { *major = 9; *minor = 0; return 0; }
int nvmlDeviceGetEnforcedPowerLimit(void *h, unsigned *mw) { return NOT_SUPPORTED; }
int nvmlDeviceGetMaxClockInfo(void *h, unsigned kind, unsigned *mhz) { *mhz = 1980; return 0; }
int nvmlDeviceGetClockInfo(void *h, unsigned kind, unsigned *mhz) { *mhz = kind == 1 ? 1755 : 2619; return 0; }
int nvmlDeviceGetTemperature(void *h, unsigned sensor, unsigned *c) { *c = 61; return 0; }
int nvmlDeviceGetPowerUsage(void *h, unsigned *mw) { *mw = 321500; return 0; }
int nvmlDeviceGetCurrentClocksEventReasons(void *h, unsigned long long *mask) { *mask = 0x4 | 0x1; return 0; }
"""


# CUDA's order, the fastest first, is the other way round than the bus's, which is NVML's.
CUDA = r"""
#include <string.h>
int cuInit(unsigned flags) { return NO_GPU; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal < 2 ? 0 : 101; }
int cuDeviceGetPCIBusId(char *text, int size, int device) {
  strncpy(text, device ? "0000:17:00.0" : "0000:65:00.0", size); return 0; }
"""


@pytest.fixture(scope="module")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """LD_LIBRARY_PATH with stubs of NVIDIA's libraries: `cuda`, and `none` whose CUDA does not start."""
    if sys.platform != "linux" or shutil.which("gcc") is None:
        pytest.skip("gcc makes the stubs of NVIDIA's libraries")
    found = {}
    for name, code in (("cuda", 0), ("none", 100)):
        folder = tmp_path_factory.mktemp(name)
        for library, text in (("libnvidia-ml.so.1", NVML), ("libcuda.so.1", CUDA.replace("NO_GPU", str(code)))):
            gcc = ["gcc", "-shared", "-fPIC", "-w", "-x", "c", "-", "-o", folder / library]
            subprocess.run(gcc, input=text, text=True, check=True)
        found[name] = str(folder)
    return found


def test_nvml_by_its_real_package_over_a_stub_of_the_library(drivers: dict[str, str]) -> None:
    """Names, types and structures are the package's own; only the driver's answers are ours."""
    code = (
        "import json\nfrom dtkd_edge.benchmarks.telemetry import SOURCES, Sampler\n"
        "sampler = Sampler(interval=60, sources={'nvidia': SOURCES['nvidia']})\n"
        "with sampler:\n    sampler.label = 'work'\n    sampler.sample()\n"
        "seen = sampler.telemetry('work')\n"
        "print(json.dumps([sampler.facts, sampler.power('work', 'nvidia'), seen.model_dump()]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env={**os.environ, "LD_LIBRARY_PATH": drivers["none"], "CUDA_VISIBLE_DEVICES": "1,0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts, watts, seen = json.loads(done.stdout)
    assert facts["nvidia"] == {
        "gpu": "NVIDIA Second", "driver": "580.95.05", "memory_gb": 80.0, "compute_capability": "9.0", "power_limit_w": None,
        "max_sm_mhz": 1980,
    }  # fmt: skip
    assert watts == 321.5 and seen["temperatures_c"] == {"gpu": 61.0}
    assert seen["clocks_mhz"] == {"gpu": 1755.0, "gpu memory": 2619.0}
    assert seen["throttled"] == "yes" and seen["throttle_reasons"] == ["software power cap"] and not seen["notes"]


@pytest.mark.parametrize(
    ("driver", "device", "visible", "gpu"),
    [
        ("cuda", "cuda", None, "Second"), ("cuda", "auto", None, "Second"), ("cuda", "cuda:1", None, "First"),
        ("none", "cuda", None, "First"), ("none", "cuda:1", None, "Second"), ("none", "cuda:1", "1,0", "First"),
        ("none", "cuda:1", "GPU-first, GPU-second", "Second"), ("none", "cuda:1", "1", None), ("none", "cuda", "", None),
        ("cuda", "cpu", None, None), ("cuda", "cuda:2", None, None),
    ],
)  # fmt: skip
def test_the_gpu_that_is_read_is_the_one_that_is_meant(
    driver: str, device: str, visible: str | None, gpu: str | None, drivers: dict[str, str]
) -> None:
    code = (
        "import sys\nfrom dtkd_edge.benchmarks.telemetry import Sampler, sources_of\n"
        "with Sampler(interval=60, sources=sources_of(sys.argv[1])) as sampler:\n"
        "    print(sampler.facts.get('nvidia', {}).get('gpu'), sampler.notes)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    environment |= {"LD_LIBRARY_PATH": drivers[driver]} | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    command = [sys.executable, "-c", code, device]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == f"{gpu and 'NVIDIA ' + gpu} []\n"


def test_a_gpu_whose_package_is_missing_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho '0, NVIDIA First, 9.0, 580.95.05'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    nvidia_gpus.cache_clear()
    try:
        with Sampler(interval=60, sources={"nvidia": SOURCES["nvidia"]}) as sampler:
            sampler.label = "work"
            sampler.sample()
    finally:
        nvidia_gpus.cache_clear()
    (note,) = sampler.telemetry("work").notes
    assert note == "nvidia: its clocks, power and throttling are not read: pip install nvidia-ml-py"
    assert sampler.telemetry("work").throttled == "unknown"


X86 = """processor\t: 0
model name\t: Some CPU
cpu MHz\t\t: 2000.0
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu avx2 avx512_bf16 hypervisor

processor\t: 1
model name\t: Some CPU
cpu MHz\t\t: 3000.0
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu avx2 avx512_bf16 hypervisor
"""
ARM = "processor\t: 0\nBogoMIPS\t: 62.50\nFeatures\t: fp asimd asimdhp asimddp\n\nprocessor\t: 1\nFeatures\t: fp asimd\n"


def test_cpuinfo() -> None:
    x86 = parse_cpuinfo(X86)
    assert x86 == {
        "model": "Some CPU", "cpus": 2, "cores": 1, "mhz": [2000.0, 3000.0], "virtual": True,
        "instruction_sets": ["avx2", "avx512_bf16"],
    }  # fmt: skip
    arm = parse_cpuinfo(ARM)
    assert arm["instruction_sets"] == ["asimd", "asimdhp", "asimddp"] and arm["cpus"] == 2


def test_this_machines_cpu() -> None:
    source = CpuSource()
    facts = source.facts()
    assert facts["model"] and facts["logical_cpus"] >= 1 and facts["memory_gb"] > 0
    source.read()


STAT = "cpu  1000 200 300 5000 100 0 50 40 900 0\ncpu0 500 100 150 2500 50 0 25 20 450 0\n"


def test_what_other_processes_take(tmp_path: Path) -> None:
    tick = os.sysconf("SC_CLK_TCK")
    assert parse_stat(STAT) == (pytest.approx(1590 / tick), pytest.approx(6690 / tick))
    assert parse_stat("") is None and parse_stat("cpu 1 2") is None and parse_stat("intr 1 2 3 4 5 6 7 8") is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/stat").write_text(STAT)
    with Sampler(tmp_path, interval=60) as sampler:
        sampler.label = "work"
        (tmp_path / "proc/stat").write_text(
            STAT.replace("cpu  1000", f"cpu  {1000 + 60 * tick}").replace(" 5000", f" {5000 + 40 * tick}")
        )
        sampler.sample()
    assert sampler.telemetry("work").other_load == pytest.approx(0.6, abs=0.05)  # of 100 s; this process took hardly any
    assert sampler.telemetry("nothing").other_load is None


def test_another_process_is_seen() -> None:
    """A real one that only turns, on the real /proc/stat."""
    with Sampler(interval=60, sources={"cpu": SOURCES["cpu"]}) as sampler:
        sampler.label = "work"
        code = "import time\nwhile time.process_time() < 1: pass"
        subprocess.run([sys.executable, "-c", code], check=True)
        sampler.sample()
    assert (sampler.telemetry("work").other_load or 0) > 0


def fake_jetson(root: Path, line: str = ORIN_NANO) -> Path:
    """A device root as an Orin Nano's: device tree, release file, and a tegrastats that prints one line again and again."""
    for path, text in {
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\x00",
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n",
        "proc/cpuinfo": ARM,
        "sys/class/hwmon/hwmon1/oc1_event_cnt": "0\n",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    tools = root / "usr/bin"
    tools.mkdir(parents=True, exist_ok=True)
    script = f"#!{sys.executable}\nimport time\nwhile True:\n    print({line!r}, flush=True)\n    time.sleep(0.05)\n"
    (tools / "tegrastats").write_text(script)
    (tools / "nvpmodel").write_text("#!/bin/sh\necho 'NV Power Mode: 15W'\necho 0\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    return root


def test_a_jetsons_root(tmp_path: Path) -> None:
    root = fake_jetson(tmp_path)
    assert jetson_model(root) == "NVIDIA Jetson Orin Nano Developer Kit"
    with Sampler(root, interval=0.05) as sampler:
        sampler.label = "work"
        deadline = time.perf_counter() + 10
        while sampler.power("work", "jetson") is None and time.perf_counter() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)
    assert sampler.facts["jetson"] == {
        "model": "NVIDIA Jetson Orin Nano Developer Kit", "l4t": "36.4.3", "jetpack": "6", "power_mode": "15W",
    }  # fmt: skip
    assert sampler.power("work", "jetson") == pytest.approx(2.957)
    seen = sampler.telemetry("work")
    assert seen.clocks_mhz["gpu"] == 305 and seen.temperatures_c["tj"] == 44.531
    assert seen.power_mode == "15W" and seen.throttled == "no" and not seen.notes
    assert len(seen.timeline) >= 2


def test_an_over_current_event_is_throttling(tmp_path: Path) -> None:
    root = fake_jetson(tmp_path)
    with Sampler(root, interval=60) as sampler:
        sampler.label = "work"
        sampler.sample()
        (root / "sys/class/hwmon/hwmon1/oc1_event_cnt").write_text("3\n")
        sampler.sample()
    seen = sampler.telemetry("work")
    assert seen.throttled == "yes" and seen.throttle_reasons == ["jetson: 3 throttle events"]


def test_a_root_without_anything_is_unknown_and_no_jetson(tmp_path: Path) -> None:
    assert jetson_model(tmp_path) is None
    with Sampler(tmp_path, interval=60) as sampler:
        sampler.label = "work"
        sampler.sample()
    assert sampler.telemetry("work").throttled == "unknown"
    assert "jetson" not in sampler.facts


class Broken:
    name = "broken"

    def __init__(self, when: str) -> None:
        self.when = when

    def _maybe(self, now: str) -> None:
        if now == self.when:
            raise RuntimeError(f"driver lost while {now}")

    def facts(self) -> dict[str, object]:
        self._maybe("facts")
        return {}

    def read(self) -> Reading:
        self._maybe("read")
        return Reading()

    def close(self) -> None:
        self._maybe("close")


@pytest.mark.parametrize("when", ["open", "facts", "read", "close"])
def test_a_source_that_breaks_becomes_a_note(when: str) -> None:
    def open_source(root: Path) -> Source:
        if when == "open":
            raise RuntimeError("driver lost while open")
        return Broken(when)

    with Sampler(interval=60, sources={"broken": open_source}) as sampler:
        sampler.label = "work"
        sampler.sample()
        sampler.sample()
    assert sampler.telemetry("work").notes == [f"broken: driver lost while {when}"]
