"""Plans: units, sizes to the byte, and what makes a file half as large."""

import pytest

from deepseek.errors import ConfigurationError
from deepseek.quant.plan import float_size, make_plan, plan_size, unit_of, units_of

LAYER = "model.layers.{}."
SHAPES = {"model.embed_tokens.weight": (512, 64), "model.norm.weight": (64,)}
for _index in range(4):
    SHAPES |= {
        LAYER.format(_index) + name: shape
        for name, shape in {
            "self_attn.q_proj.weight": (64, 64),
            "self_attn.q_proj.bias": (64,),
            "self_attn.k_proj.weight": (32, 64),
            "self_attn.v_proj.weight": (32, 64),
            "self_attn.o_proj.weight": (64, 64),
            "mlp.gate.weight": (8, 64),
            "mlp.gate_proj.weight": (128, 64),
            "mlp.up_proj.weight": (128, 64),
            "mlp.down_proj.weight": (64, 128),
            "input_layernorm.weight": (64,),
        }.items()
    }


def test_units_are_what_is_one_matrix_in_memory():
    assert unit_of("model.layers.3.self_attn.v_proj.weight") == "model.layers.3.self_attn.qkv"
    assert unit_of("model.layers.3.mlp.up_proj.weight") == "model.layers.3.mlp.gate_up"
    assert unit_of("model.layers.3.mlp.down_proj.weight") == "model.layers.3.mlp.down_proj"
    assert unit_of("model.layers.3.mlp.experts.17.up_proj.weight") == "model.layers.3.mlp.experts"
    units = units_of(SHAPES)
    assert len(units) == 16
    assert units["model.layers.0.self_attn.qkv"] == [f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv"]


@pytest.mark.parametrize("tied", [False, True])
def test_int8_goes_below_half_with_no_more_int4_than_needed(tied):
    shapes = SHAPES if tied else SHAPES | {"lm_head.weight": (512, 64)}
    order = list(units_of(shapes))[::-1]
    plan = make_plan("int8", shapes, tied=tied, cheapest=order)
    size, limit = plan_size(plan, shapes, tied=tied), 0.4985 * float_size(shapes)
    assert size <= limit
    chosen = [unit for unit in order if unit in plan.reasons]
    assert chosen == order[: len(chosen)]
    one_less = make_plan("int8", shapes, tied=tied, cheapest=chosen[:-1])
    assert plan_size(one_less, shapes, tied=tied) > limit
    assert plan.bits["model.embed_tokens.weight"] == 8
    assert "model.layers.0.mlp.gate.weight" in plan.floating
    assert set(plan.bits) | set(plan.floating) == set(shapes)


def test_sensitive_units_stay_floating_and_are_paid_for():
    order = list(units_of(SHAPES))
    plan = make_plan("int8", SHAPES, tied=True, cheapest=order, sensitive={order[0]: "because"})
    assert {plan.bits[name] for name in units_of(SHAPES)[order[0]]} == {16}
    assert plan.reasons[order[0]] == "because"
    assert plan_size(plan, SHAPES, tied=True) <= 0.4985 * float_size(SHAPES)


def test_int4_leaves_the_vocabulary_and_odd_widths_in_int8():
    shapes = SHAPES | {"model.layers.0.mlp.down_proj.weight": (64, 100)}
    plan = make_plan("int4", shapes, tied=True)
    assert plan.bits["model.layers.0.mlp.down_proj.weight"] == 8
    assert plan.bits["model.embed_tokens.weight"] == 8
    assert sum(bits == 4 for bits in plan.bits.values()) == 4 * 7 - 1


def test_unknown_kind():
    with pytest.raises(ConfigurationError, match="int8 or int4, not to 'int2'"):
        make_plan("int2", SHAPES, tied=True)
