"""The task in names and sizes: scenes and devices of TAU Urban Acoustic Scenes 2020 Mobile, clips.

The ground floor: everything may import it, and it imports nothing.

Source: DCASE 2021 Challenge, Task 1A, and the report of Puy, Jain and Bursuc on it.
"""

SCENES = (
    "airport",
    "bus",
    "metro",
    "metro_station",
    "park",
    "public_square",
    "shopping_mall",
    "street_pedestrian",
    "street_traffic",
    "tram",
)
DEVICES = ("a", "b", "c", "s1", "s2", "s3", "s4", "s5", "s6")  # s: simulated
TRAINING_DEVICES = DEVICES[:6]  # those of the training split

SAMPLE_RATE = 44_100  # Hz
CLIP_SAMPLES = 441_000  # 10 s
N_FFT = 2048
HOP = 1024
N_MELS = 256
FRAMES = 1 + CLIP_SAMPLES // HOP  # 431
FLOOR = -100.0  # dB, of log-mels
