import pytest

from jaxvlm.errors import UserError
from jaxvlm.planning.slices import find_slice, known_slices, larger_slice

NAMES = [f"v5e-{n}" for n in (1, 4, 8, 16, 32, 64, 128, 256)] + ["v5p-8", "v5p-16", "v6e-1", "v6e-8", "v6e-256"]


def test_the_slices_of_the_plan_are_known():
    assert set(NAMES) <= set(known_slices())


@pytest.mark.parametrize(
    ("name", "topology", "chips", "slices"),
    [
        ("v5e-1", "v5e:1x1", 1, 1),
        ("v5e-16", "v5e:4x4", 16, 1),
        ("v5p-8", "v5p:2x2x1", 4, 1),  # eight cores are four chips
        ("v6e-8", "v6e:2x4", 8, 1),
        ("2xv5e-16", "v5e:4x4", 32, 2),
        ("V5E-4", "v5e:2x2", 4, 1),
    ],
)
def test_find_slice(name, topology, chips, slices):
    found = find_slice(name)
    assert (found.topology, found.num_chips, found.num_slices) == (topology, chips, slices)
    assert found.chip.name == topology.split(":")[0]


@pytest.mark.parametrize("name", ["v5e-17", "v5e", "v9x-8", "0xv5e-4", "x2v5e-4", "16"])
def test_an_unknown_slice_is_an_error_that_lists_the_known(name):
    with pytest.raises(UserError, match=f"no slice is called {name}.*known: v5e-1, v5e-4.*2xv5e-16"):
        find_slice(name)


def test_chips_as_published():
    v5e, v5p, v6e = (find_slice(name).chip for name in ("v5e-1", "v5p-8", "v6e-1"))
    assert (v5e.flops, v5p.flops, v6e.flops) == (197e12, 459e12, 918e12)
    assert (v5e.link_bandwidth, v5p.link_bandwidth, v6e.link_bandwidth) == (50e9, 100e9, 100e9)
    assert v5e.network_bandwidth == 3.125e9 and v6e.network_bandwidth == 12.5e9


def test_larger_slice():
    assert larger_slice(find_slice("v5e-4")) == "v5e-8"
    assert larger_slice(find_slice("2xv5e-4")) == "2xv5e-8"
    assert larger_slice(find_slice("v6e-256")) is None
