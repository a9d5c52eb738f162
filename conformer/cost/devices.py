"""The rates and energies of devices, each figure with its source or the word "assumed".

Energies of arithmetic and on-chip memory are those of a 7 nm process in Jouppi et al., "Ten Lessons From Three
Generations Shaped Google's TPUv4i" (ISCA 2021), table 2, which brings Horowitz (ISSCC 2014) up to date: a
multiplication and an addition of 0.34 + 0.16 pJ in float16, 1.31 + 0.38 in float32, 0.07 + 0.03 in int8 with int32,
0.21 + 0.38 in bfloat16 with float32; 8 bytes from 1 MB of SRAM 14 pJ, from HBM2 350. LPDDR4X is taken at 4 pJ a bit.
They leave out control, clocks and leakage: energies rank designs, and are a lower bound of what a battery sees.
"""

import dataclasses
from collections.abc import Mapping

PICO = 1e-12
MAC_ENERGY = {"float32": 1.69 * PICO, "bfloat16": 0.59 * PICO, "float16": 0.5 * PICO, "int8": 0.1 * PICO}
SRAM, LPDDR, HBM = 14 * PICO / 8, 32 * PICO, 350 * PICO / 8  # joules a byte


@dataclasses.dataclass(frozen=True)
class Device:
    """Rates in operations (two a multiply-accumulate) and bytes a second; energies in joules."""

    name: str
    matrix_rate: Mapping[str, float]  # by the format that is multiplied
    depthwise_rate: float  # convolutions of single channels
    vector_rate: float  # additions, multiplications, comparisons of elements
    transcendental_rate: float  # exponentials and the like
    memory_bandwidth: float  # weights that do not fit the cache
    cache_bytes: int  # weights and state stay in it from one chunk to the next, where all of them fit
    cache_bandwidth: float  # weights and state that fit
    activation_bandwidth: float  # activations that fit
    launch_seconds: float  # of each operation
    call_seconds: float  # of each chunk or utterance
    overlapped: bool  # memory is read while the engine computes; else one follows the other
    memory_energy: float  # a byte
    cache_energy: float = SRAM  # a byte
    mac_energy: Mapping[str, float] = dataclasses.field(default_factory=lambda: MAC_ENERGY)
    watts: float = 0.0  # drawn whatever is computed, while it is


DEVICES = {
    # The watch of the paper is an Apple Watch Series 7, of whose accelerator nothing is published. Taken instead: the
    # smallest Neural Engine with a published rate, the A11's (2017), 600 G operations/s, of which an eighth are vector
    # operations (assumed); half of one 32-bit LPDDR4X-4266 channel; cache, launch and call assumed.
    "watch": Device(
        name="watch-class accelerator",
        matrix_rate={"float32": 0.15e12, "bfloat16": 0.6e12, "float16": 0.6e12, "int8": 0.6e12},
        depthwise_rate=75e9,
        vector_rate=75e9,
        transcendental_rate=10e9,
        memory_bandwidth=8.5e9,
        cache_bytes=2 * 2**20,
        cache_bandwidth=50e9,
        activation_bandwidth=50e9,
        launch_seconds=5e-6,
        call_seconds=200e-6,
        overlapped=True,
        memory_energy=LPDDR,
        watts=0.02,
    ),
    # An Apple A14's Neural Engine: 11 T operations/s (Apple, 2020); 64-bit LPDDR4X-4266, 34 GB/s; 16 MB of system
    # cache, of which a quarter (assumed). Half of the rate for float16, launch and call assumed.
    "phone": Device(
        name="phone-class accelerator",
        matrix_rate={"float32": 1.4e12, "bfloat16": 5.5e12, "float16": 5.5e12, "int8": 11e12},
        depthwise_rate=0.7e12,
        vector_rate=0.7e12,
        transcendental_rate=0.1e12,
        memory_bandwidth=34e9,
        cache_bytes=4 * 2**20,
        cache_bandwidth=200e9,
        activation_bandwidth=200e9,
        launch_seconds=2e-6,
        call_seconds=100e-6,
        overlapped=True,
        memory_energy=LPDDR,
        watts=0.1,
    ),
    # An Arm Ethos-U55 of 128 int8 multiply-accumulates a cycle at 500 MHz with 4 GB/s of SRAM and 0.5 GB/s of flash:
    # the system "Ethos_U55_High_End_Embedded" of Arm's compiler Vela. 8 elements a cycle besides, launch, call, and the
    # energy of a byte of flash assumed. Other formats than int8 would run on the microcontroller beside it.
    "ethos-u55": Device(
        name="microcontroller with an Ethos-U55",
        matrix_rate={"int8": 128e9},
        depthwise_rate=16e9,
        vector_rate=8e9,
        transcendental_rate=4e9,
        memory_bandwidth=0.5e9,
        cache_bytes=2 * 2**20,
        cache_bandwidth=4e9,
        activation_bandwidth=4e9,
        launch_seconds=1e-6,
        call_seconds=50e-6,
        overlapped=True,
        memory_energy=100 * PICO,
    ),
    # One core of an AMD EPYC (Zen 4, 2.6 GHz, virtual) under XLA's CPU backend: all rates from `bench.py cost`, which
    # takes them from single operations of several sizes, never from a model. Weights are packed before they are
    # multiplied, one after the other. 3.75 W, a 96-core part's 360 W shared out, is all of the energy.
    "x86": Device(
        name="one x86 core",
        matrix_rate={"float32": 100e9, "bfloat16": 200e9, "int8": 400e9},
        depthwise_rate=90e9,
        vector_rate=12e9,
        transcendental_rate=2e9,
        memory_bandwidth=10e9,
        cache_bytes=16 * 2**20,
        cache_bandwidth=20e9,
        activation_bandwidth=200e9,
        launch_seconds=0.1e-6,
        call_seconds=100e-6,
        overlapped=False,
        memory_energy=0.0,
        cache_energy=0.0,
        mac_energy=dict.fromkeys(MAC_ENERGY, 0.0),
        watts=3.75,
    ),
    # NVIDIA's data sheet of the H200 (SXM): dense rates, 4.8 TB/s, 50 MB of L2, 700 W; a fifth of it when idle, the
    # L2's bandwidth, launch (inside a CUDA graph) and call assumed.
    "h200": Device(
        name="NVIDIA H200",
        matrix_rate={"float32": 494e12, "bfloat16": 989e12, "float16": 989e12, "int8": 1979e12},
        depthwise_rate=67e12,
        vector_rate=67e12,
        transcendental_rate=4.2e12,
        memory_bandwidth=4.8e12,
        cache_bytes=50 * 2**20,
        cache_bandwidth=10e12,
        activation_bandwidth=10e12,
        launch_seconds=2e-6,
        call_seconds=20e-6,
        overlapped=True,
        memory_energy=HBM,
        watts=140.0,
    ),
    # NVIDIA's white paper "Ada GPU Architecture", table of the RTX 4090 (24 GB): dense rates that add up in float32,
    # 1,008 GB/s, 72 MB of L2, 450 W; 128 processors of 16 exponentials a cycle at 2.52 GHz. Energy of a byte of GDDR6X,
    # a fifth of the power when idle, the L2's bandwidth, launch and call assumed.
    "rtx-4090": Device(
        name="NVIDIA RTX 4090",
        matrix_rate={"float32": 82.6e12, "bfloat16": 165.2e12, "float16": 165.2e12, "int8": 660.6e12},
        depthwise_rate=82.6e12,
        vector_rate=82.6e12,
        transcendental_rate=5.2e12,
        memory_bandwidth=1.008e12,
        cache_bytes=72 * 2**20,
        cache_bandwidth=5e12,
        activation_bandwidth=5e12,
        launch_seconds=2e-6,
        call_seconds=20e-6,
        overlapped=True,
        memory_energy=60 * PICO,
        watts=90.0,
    ),
}
