"""roilib.apps.drive.link: bytes are neither lost nor made, and delays are as by hand."""

import numpy as np
import pytest

from roilib.apps.drive.link import PACKET, Bucket, Link, Loss, constant, packets, read_trace


def steps() -> Link:
    """1,000 bytes a second, none from 2 s to 3 s, then 4,000."""
    return Link(np.array([0.0, 2.0, 3.0]), np.array([1000.0, 0.0, 4000.0]))


def test_a_constant_stream_waits_as_long_as_worked_out_by_hand():
    bucket = Bucket(constant(1), fps=10, latency_ms=250)
    assert bucket.space(0) == 31_250
    assert bucket.share(0) == 12_500
    cases = [
        (25_000, 0, 200, False),
        (12_500, 100, 100, False),
        (18_750, 100, 150, False),
        (12_500, 150, 100, False),
        (25_000, 150, 200, True),
    ]
    for i, (size, queue, transmission, late) in enumerate(cases):
        sent = bucket.send(i / 10, size)
        assert (sent.queue_ms, sent.transmission_ms) == pytest.approx((queue, transmission))
        assert sent.delay_ms == pytest.approx(queue + transmission)
        assert sent.late is late


def test_a_trace_is_integrated():
    link = steps()
    assert link.through(1, 3.5) == pytest.approx(1000 + 0 + 2000)
    assert link.through(2.2, 2.9) == 0
    assert link.finish(1, 1000) == pytest.approx(2)
    assert link.finish(1, 1001) == pytest.approx(3 + 1 / 4000)
    assert link.finish(2.5, 2000) == pytest.approx(3.5)
    assert [link.rate(t) for t in (0, 1.99, 2, 3, 100)] == [1000, 1000, 0, 4000, 4000]


def test_what_goes_in_is_what_got_through_and_what_waits():
    random, link = np.random.default_rng(0), steps()
    bucket = Bucket(link, 10, 500)
    for time in np.arange(0, 6, 0.1):
        size = int(random.integers(0, 400))
        before = bucket.queued(time)
        sent = bucket.send(time, size)
        assert bucket.queued(time) == pytest.approx(before + size, abs=1e-6)
        assert link.through(time, time + sent.delay_ms / 1000) == pytest.approx(
            before + size, abs=1e-6
        )


@pytest.mark.parametrize("latency", [60, 100, 250])
def test_what_fits_is_never_late_on_a_constant_link(latency):
    random, bucket = np.random.default_rng(1), Bucket(constant(0.7), 12.5, latency)
    for i in range(200):
        budget = bucket.space(i / 12.5) if random.random() < 0.5 else bucket.share(i / 12.5)
        assert 0 <= budget <= 87_500 * latency / 1000
        assert not bucket.send(i / 12.5, budget).late


def test_a_full_bucket_overflows_by_one_byte_more():
    for extra, late in ((0, False), (1, True)):
        bucket = Bucket(constant(1), 10, 200)
        bucket.send(0, 20_000)
        assert bucket.send(0.1, bucket.space(0.1) + extra).late is late


def test_nothing_fits_when_the_rate_has_fallen_below_what_waits():
    bucket = Bucket(steps(), 10, 500)
    bucket.send(1.9, 500)
    assert bucket.space(2.0) < 0
    assert bucket.share(2.0) < 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n", "an empty trace"),
        ("time_s,mbit_s\n", "starts at time 0"),
        ("time_s,mbit_s\n1,1\n", "starts at time 0"),
        ("time_s,mbit_s\n0,1\n0,2\n", "times must rise"),
        ("time_s,mbit_s\n0,fast\n", "line 2: two numbers"),
        ("time_s,mbit_s\n0,,1\n", "line 2: two numbers"),
        ("time_s,mbit_s\n0,1\n1\n", "line 3: two numbers"),
        ("time_s,mbit_s\n0,-1\n", "line 2: a finite time"),
        ("time_s,mbit_s\n0,inf\n", "line 2: a finite time"),
        ("time_s,mbit_s\n0,1\n1,0\n", "the last bandwidth"),
        ("time_s,mbit_s\n0," + 140_000 * "1", "line 2: a finite time"),
        ("time_s;mbit_s\n0;1\n", "line 1: two numbers"),
        ("seconds,kbit_s\n0,1000\n", "line 1: two numbers"),
        ("time_s,mbyte_s\n0,1\n", "line 1: two numbers"),
        ("time_s,kbit_s\n0,1e9\n", "line 2: a finite time"),
        ("1 1000 51.0 3.7 2493100 0\n", "line 1: two numbers"),
        ("1 1000 51.0 3.7 -5 1000\n", "line 1: a finite time"),
        ("0 4500\n1 3800\n2 5100\n", "bandwidths of 4500 Mbit/s look like other units"),
        ("0 1\n2 1\n1 1\n", "times must rise, but 1 does not"),
        ("3\n1\n2\n", "whole numbers are Mahimahi's milliseconds, which rise"),
        ("0\n0\n", "whole numbers are Mahimahi's"),
        ("-5\n1\n", "line 1: two numbers"),
        ("1\n" + "9" * 30, "whole numbers are Mahimahi's"),
        ("1.5\n2.5\n", "line 1: two numbers"),
        ('[{"t": 0, "mbit": 1}]', "line 1: two numbers"),
    ],
)
def test_bad_traces_are_named(tmp_path, text, message):
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"trace\.csv: .*{message}"):
        read_trace(path)


def test_a_trace_is_in_mbit(tmp_path):
    (tmp_path / "trace.csv").write_text("time_s,mbit_s\n0,1\n\n2.5,0.4\n")
    link = read_trace(tmp_path / "trace.csv")
    assert (link.rate(2.4), link.rate(2.5)) == (125_000, 50_000)
    with pytest.raises(ValueError, match="no such file"):
        read_trace(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("text", "times", "mbit"),
    [
        ('"time_s","mbit_s"\r\n0,1\r\n3,0.5\r\n', [0, 3], [1, 0.5]),  # as R writes
        ("0.0 1.25\n0.5 0\n1.0\t2\n", [0, 0.5, 1], [1.25, 0, 2]),  # as Pensieve's
        ("1289406399.0,1\n1289406401.5, 2\n", [0, 2.5], [1, 2]),
        ("time_s,mbit_s\n0,2500\n", [0], [2500]),
        ("time_s,kbit_s\n0,800\n2.5,1200\n", [0, 2.5], [0.8, 1.2]),
        ("time_ms,bit_s\n0,8e5\n500,1.2e6\n", [0, 0.5], [0.8, 1.2]),
        (
            "9 39287 51 3.7 2493100 1000\n9 40288 51 3.7 0 1001\n9 41288 51 3.7 125000 1000\n",
            [0, 1, 2.001],
            [19.9448, 0, 1],
        ),  # as the 4G logs of Ghent
        ("1\n", [0], [12]),  # 1,500 bytes a millisecond
        ("0\n\n0\n5\n10\n", [0], [4.8]),
        ("100\n600\n700\n1000\n", [0, 0.5, 1, 1.5], [0.024, 0.072, 0.024, 0.072]),
    ],
)
def test_traces_of_other_tools(tmp_path, text, times, mbit):
    (tmp_path / "trace").write_text("\ufeff" + text)
    link = read_trace(tmp_path / "trace")
    np.testing.assert_allclose(link.times[: len(times)], times, atol=1e-6)
    np.testing.assert_allclose(link.rates[: len(times)] / 125_000, mbit)


def test_mahimahis_bytes_get_through(tmp_path):
    stamps = np.sort(np.random.default_rng(0).integers(0, 20_000, 3000))
    (tmp_path / "up.trace").write_text("\n".join(map(str, stamps)))
    link, period = read_trace(tmp_path / "up.trace"), stamps[-1] / 1000
    assert link.through(0, period) == pytest.approx(1500 * 3000)
    assert link.through(0, 10 * period) == pytest.approx(1500 * 30_000)
    assert link.times[-1] == pytest.approx(3600, abs=period)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: constant(0),
        lambda: constant(float("nan")),
        lambda: Bucket(constant(1), 0, 100),
        lambda: Loss(1.0),
    ],
)
def test_values_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="not"):
        wrong()


@pytest.mark.slow
@pytest.mark.parametrize(("burst", "mean"), [(None, 1 / 0.9), (4, 4)])
def test_packets_are_lost_as_often_and_in_such_bursts_as_said(burst, mean):
    loss = Loss(0.1, burst, seed=3)
    lost = [not loss.arrives(frame, PACKET) for frame in range(20_000)]
    runs = sum(b and not a for a, b in zip([False, *lost[:-1]], lost, strict=True))
    assert np.mean(lost) == pytest.approx(0.1, rel=0.1)
    assert sum(lost) / runs == pytest.approx(mean, rel=0.1)


def test_a_frame_needs_all_its_packets_and_senders_lose_the_same_ones():
    assert [packets(size) for size in (1, PACKET, PACKET + 1)] == [1, 1, 2]
    one, again, larger = (
        [Loss(0.05, seed=5).arrives(frame, size) for frame in range(400)]
        for size in (4000, 4000, 40_000)
    )
    assert one == again
    assert sum(larger) < sum(one) < 400
    assert all(small or not large for small, large in zip(one, larger, strict=True))
