from asc.fitted import FittedOn


def test_sets_that_share_clips_are_known() -> None:
    few = FittedOn.of("evaluate", [f"audio/{i}.wav" for i in range(100)])
    assert few.count == 100 and len(few.hashes) == 100
    assert few.shares(["audio/200.wav", "audio/99.wav"])
    assert not few.shares(f"audio/{i}.wav" for i in range(100, 5000))
    many = FittedOn.of("train", [f"audio/{i}.wav" for i in range(3000)])
    assert len(many.hashes) == 128
    assert many.shares(f"audio/{i}.wav" for i in range(2700, 6000))
    assert not many.shares(f"audio/{i}.wav" for i in range(3000, 9000))
