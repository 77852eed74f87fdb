"""A service over a link of the kernel is as quick as it was predicted to be."""

from dataclasses import replace

import pytest

from tests.run.cable import CannotLayError, laid_or_skipped


@pytest.mark.slow
@pytest.mark.alone
def test_a_request_over_a_shaped_link_takes_within_a_tenth_of_what_was_predicted(tmp_path):
    pytest.importorskip("cryptography", reason="devices with addresses need keys")
    from tests.run.shaped import platform, predict, served, write_network

    rate, mtu = 250e3, 296
    devices = platform(rate, 1, mtu)
    bundle = write_network(tmp_path / "bundle", devices, ("8,192 B",))
    with (
        laid_or_skipped(1) as cables,
        served(cables, tmp_path / "bundle", tmp_path / "keys") as asker,
    ):
        asker.latency_s(30, seed=0)
        free_s, free_per_s = min(asker.latency_s(50, seed=1)), asker.per_s(100, seed=2)
        try:
            cables[0].shape(rate, mtu=mtu)
        except CannotLayError as error:
            pytest.skip(f"no shaping here: {error}")
        said = predict(bundle, devices.links, free_s, free_per_s)
        # The quickest of several, as a busy machine makes some slower; medians: benchmarks.
        assert min(asker.latency_s(9, seed=3)) == pytest.approx(said.latency_s, rel=0.1)
        assert said.per_s / 2 < asker.per_s(16, seed=4) < 1.1 * said.per_s
        half = predict(bundle, [replace(devices.links[0], bytes_per_s=rate / 4)], free_s, 1e9)
        assert half.latency_s < 0.6 * said.latency_s  # the test can tell
