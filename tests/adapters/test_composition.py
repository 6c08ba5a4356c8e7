import pytest
import torch
from graftwork_adapters.canonical import (
    BiasDelta,
    LoweredAdapter,
    LowRank,
    ModuleAdapter,
    OutputScale,
)
from graftwork_adapters.canonical_linear import (
    BiasedScale,
    Circulant,
    DenseDelta,
    InputScale,
    Kronecker,
    SparseDelta,
)
from graftwork_adapters.canonical_parts import (
    Bottleneck,
    ClassifierHead,
    GatedPrompt,
    KeyValuePrefix,
    TokenRows,
)
from graftwork_adapters.composition import Component, compose, composition_digest
from graftwork_adapters.errors import CannotCompose, ZeroEffect
from hypothesis import given
from hypothesis import strategies as st

weights = st.floats(-100, 100, width=32).filter(bool)


def component(name: str, weight: float = 1.0) -> Component:
    return Component(f"{name}@1", name.upper(), f"sha256:{name}", weight)


def adapter(**parts) -> LoweredAdapter:
    return LoweredAdapter({"m": ModuleAdapter(**parts)})


def pair(rank: int, dtype=torch.float32) -> LowRank:
    return LowRank(torch.randn(rank, 5).to(dtype), torch.randn(4, rank).to(dtype))


@given(st.permutations([component("a", 0.5), component("b", -2.0), component("b", 1.0)]))
def test_the_digest_does_not_depend_on_the_order(parts):
    expected = composition_digest([component("a", 0.5), component("b", -2.0), component("b", 1.0)])
    assert composition_digest(parts) == expected
    assert composition_digest(parts[:2]) != expected


@given(weights, weights)
def test_the_digest_depends_on_the_weight(first, second):
    digests = [composition_digest([component("a", w)]) for w in (first, second)]
    assert (digests[0] == digests[1]) == (first == second)


@given(
    st.lists(
        st.tuples(st.integers(1, 4), weights, st.sampled_from([torch.float32, torch.bfloat16])),
        min_size=1,
        max_size=4,
    )
)
def test_pairs_and_biases_add_up(kinds):
    pairs = [pair(rank, dtype) for rank, _, dtype in kinds]
    biases = [torch.randn(4) for _ in kinds]
    parts = [
        (
            component(f"a{index}", weight),
            adapter(low_rank=pairs[index], bias_delta=BiasDelta(biases[index])),
        )
        for index, (_, weight, _) in enumerate(kinds)
    ]
    module = compose(parts).modules["m"]
    assert module.low_rank.rank == sum(rank for rank, _, _ in kinds)
    expected = sum(
        w * (p.b.float() @ p.a.float()) for p, (_, w, _) in zip(pairs, kinds, strict=True)
    )
    found = module.low_rank.b @ module.low_rank.a
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)
    bias = sum(w * b for b, (_, w, _) in zip(biases, kinds, strict=True))
    torch.testing.assert_close(module.bias_delta.delta, bias, atol=1e-3, rtol=1e-4)


def test_modules_of_one_adapter_alone_keep_their_part():
    other = LoweredAdapter({"n": ModuleAdapter(low_rank=pair(2))})
    whole = compose([(component("a"), adapter(low_rank=pair(3))), (component("b"), other)])
    assert {name: m.low_rank.rank for name, m in whole.modules.items()} == {"m": 3, "n": 2}


@pytest.mark.parametrize(
    ("make", "scaled"),
    [
        (DenseDelta, "delta"),
        (lambda t: Circulant(t.reshape(2, 2, -1)), "kernels"),
    ],
)
def test_added_terms_of_one_kind_add_up(make, scaled):
    first, second = torch.randn(4, 4), torch.randn(4, 4)
    parts = [
        (component("a", 2.0), adapter(added_term=make(first))),
        (component("b", -0.5), adapter(added_term=make(second))),
    ]
    found = getattr(compose(parts).modules["m"].added_term, scaled)
    expected = getattr(make(2 * first - 0.5 * second), scaled)
    torch.testing.assert_close(found, expected)


INDICES = torch.tensor([0, 1])
ROWS = TokenRows(INDICES, torch.ones(2, 5))
HEADS = torch.ones(1, 2, 1, 5)
FACTOR = torch.ones(5, 5)


@pytest.mark.parametrize(
    ("term", "scaled"),
    [
        (Kronecker(torch.ones(2, 2), torch.ones(2, 2)), "left"),
        (SparseDelta(INDICES, INDICES, torch.ones(2), 4, 4), "values"),
    ],
)
def test_a_term_of_one_adapter_is_scaled(term, scaled):
    found = compose([(component("a", 3.0), adapter(added_term=term))]).modules["m"].added_term
    torch.testing.assert_close(getattr(found, scaled), 3 * getattr(term, scaled))


def test_terms_of_two_kinds_are_refused():
    kronecker = Kronecker(torch.ones(2, 2), torch.ones(2, 2))
    parts = [
        (component("a"), adapter(added_term=DenseDelta(torch.ones(4, 4)))),
        (component("lokr"), adapter(added_term=kronecker)),
    ]
    with pytest.raises(CannotCompose, match=r"lokr@1.*\(LOKR\).*m is changed by A as well"):
        compose(parts)


@pytest.mark.parametrize(
    ("refused", "part"),
    [
        (adapter(low_rank=pair(1), output_scale=OutputScale(torch.ones(4))), "output scale"),
        (adapter(input_transform=InputScale(torch.ones(5))), "input transform"),
        (adapter(output_transform=BiasedScale(torch.ones(4))), "output transform"),
        (LoweredAdapter(virtual_tokens=torch.ones(2, 5)), "virtual tokens"),
        (LoweredAdapter(prefix=KeyValuePrefix(HEADS, HEADS)), "prefix"),
        (LoweredAdapter(gated_prompts={0: GatedPrompt(HEADS[0], HEADS[0], 1.0)}), "gated prompts"),
        (
            LoweredAdapter(
                bottlenecks={"m": Bottleneck(FACTOR, FACTOR[0], FACTOR, FACTOR[0], "relu")}
            ),
            "bottlenecks",
        ),
        (LoweredAdapter(replaced={"m": {"weight": FACTOR}}), "replaced modules"),
        (LoweredAdapter(embedding_rows=ROWS, head_rows=ROWS), "embedding rows and head rows"),
        (LoweredAdapter(classifier=ClassifierHead(FACTOR, None, tuple("abcde"))), "classifier"),
    ],
)
def test_what_does_not_add_up_is_refused(refused, part):
    with pytest.raises(CannotCompose, match=part):
        compose([(component("a"), adapter(low_rank=pair(1))), (component("b"), refused)])


def test_what_cancels_out_is_refused():
    parts = [
        (component("a", weight), adapter(added_term=DenseDelta(torch.ones(4, 4))))
        for weight in (1.0, -1.0)
    ]
    with pytest.raises(ZeroEffect):
        compose(parts)
