"""roilib.link: bytes are neither lost nor made, and delays are what one works out by hand."""

import numpy as np
import pytest

from roilib.link import PACKET, Bucket, Link, Loss, constant, packets, read_trace


@pytest.fixture
def changing():
    """1,000 bytes a second, from second 2 on nothing, from second 3 on 500."""
    return Link(np.array([0.0, 2.0, 3.0]), np.array([1000.0, 0.0, 500.0]))


def test_a_megabit_is_125_000_bytes_a_second():
    assert constant(1).through(3, 5) == 250_000


def test_what_gets_through_is_the_integral_of_the_rate(changing):
    assert changing.through(1, 5) == 1000 + 0 + 1000
    assert changing.rate(2.5) == 0


def test_finish_is_the_inverse_of_through(changing):
    for start in (0.0, 0.7, 1.999, 2.5, 3.0):
        for size in (1, 400, 1500, 9000):
            assert changing.through(start, changing.finish(start, size)) == pytest.approx(size)


def test_a_steady_stream_waits_for_nothing():
    bucket = Bucket(constant(1), 10, 200)
    for i in range(20):
        assert bucket.share(i / 10) == 12_500
        delivery = bucket.send(i / 10, 12_500)
        assert (delivery.queue_ms, delivery.transmission_ms, delivery.late) == (pytest.approx(0, abs=1e-6), pytest.approx(100), False)


def test_a_frame_waits_for_those_before_it():
    bucket = Bucket(constant(1), 10, 200)
    assert bucket.space(0) == 25_000
    bucket.send(0, 25_000)  # takes 200 ms
    assert bucket.queued(0.1) == pytest.approx(12_500)
    assert bucket.space(0.1) == 12_500
    delivery = bucket.send(0.1, 20_000)
    assert (delivery.queue_ms, delivery.transmission_ms) == (pytest.approx(100), pytest.approx(160))
    assert delivery.late
    assert bucket.space(0.2) == 25_000 - 20_000


def test_who_takes_its_share_is_never_late_and_no_byte_is_made():
    random, bucket, sent = np.random.default_rng(0), Bucket(constant(0.5), 7, 150), 0
    for i in range(300):
        now = i / 7
        size = int(bucket.share(now) * random.random())
        assert not bucket.send(now, size).late
        sent += size
        assert bucket.queued(now) <= 62_500 * 0.15 + 1
        assert bucket.link.through(0, now) >= sent - bucket.queued(now) - 1e-6


def test_a_rate_that_falls_leaves_no_space(changing):
    bucket = Bucket(changing, 10, 500)
    bucket.send(1.9, 400)
    assert bucket.space(2.0) < 0


def write(tmp_path, text):
    path = tmp_path / "trace.csv"
    path.write_text(text)
    return path


def test_a_trace_is_read_and_mistakes_are_named_with_their_line(tmp_path):
    link = read_trace(write(tmp_path, "time_s,mbit_s\n0,1\n2.5,0.2\n"))
    assert link.through(0, 5) == pytest.approx(125_000 * 2.5 + 25_000 * 2.5)
    for text, message in (
        ("", "begins with the line"),
        ("0,1\n", "begins with the line"),
        ("time_s,mbit_s\n", "starts at time 0"),
        ("time_s,mbit_s\n1,1\n", "starts at time 0"),
        ("time_s,mbit_s\n0,1\n0,2\n", "times must rise"),
        ("time_s,mbit_s\n0,1\n3,x\n", "line 3: two numbers"),
        ("time_s,mbit_s\n0,1,7\n", "line 2: two numbers"),
        ("time_s,mbit_s\n0,nan\n", "line 2: a finite time"),
        ("time_s,mbit_s\n0,-1\n", "line 2: a finite time"),
        ("time_s,mbit_s\n0,1\n4,0\n", "must be above 0"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            read_trace(write(tmp_path, text))
        assert "trace.csv" in str(error.value)


@pytest.mark.parametrize("values", [{"mbit": 0}, {"mbit": float("nan")}, {"fps": 0}, {"latency_ms": -1}, {"probability": 1}, {"burst": 0.5}])
def test_impossible_values_are_refused(values):
    v = {"mbit": 1, "fps": 10, "latency_ms": 100, "probability": 0.1, "burst": 2} | values
    with pytest.raises(ValueError, match="not"):
        Bucket(constant(v["mbit"]), v["fps"], v["latency_ms"]), Loss(v["probability"], v["burst"])


def test_packets_cover_a_frame():
    assert [packets(size) for size in (0, 1, PACKET, PACKET + 1)] == [0, 1, 1, 2]


def test_losses_are_as_likely_as_said_and_the_same_for_everybody():
    def arrived(**options):
        loss = Loss(0.05, **options)
        return [loss.arrives(frame, PACKET) for frame in range(20_000)]

    alone, again, bursts = arrived(), arrived(), arrived(burst=4)
    assert alone == again != arrived(seed=1)
    assert 1 - np.mean(alone) == pytest.approx(0.05, abs=0.005)
    assert 1 - np.mean(bursts) == pytest.approx(0.05, abs=0.01)
    ends = sum(not a and b for a, b in zip(bursts, bursts[1:], strict=False))
    assert (len(bursts) - sum(bursts)) / ends == pytest.approx(4, rel=0.15)
    assert all(Loss(0).arrives(frame, 50 * PACKET) for frame in range(50))
