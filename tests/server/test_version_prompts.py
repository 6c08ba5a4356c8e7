"""Versions that carry a prompt, over gRPC."""

import json
from pathlib import Path

import pytest
from graftwork import FailedPrecondition, Message

from tests.support.peft_adapters import lora_config, save_random_adapter
from tests.support.server import serving
from tests.support.tiny_models import tiny_model
from tests.support.tiny_server import tiny_base, tiny_settings

MODEL = tiny_model("llama")
LORA = lora_config(4, target_modules=["q_proj", "down_proj"])
SYSTEM, TEMPLATE = "Answer in rhyme.", "Q: {input} A:"
PROMPT = {
    "system": SYSTEM,
    "examples": [{"user": "sun?", "assistant": "fun."}],
    "template": TEMPLATE,
}
FRAMED = [
    Message("system", SYSTEM),
    Message("user", "sun?"),
    Message("assistant", "fun."),
    Message("user", "hi"),
]


def prompt_folder(folder: Path, fields=PROMPT) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "graftwork_prompt.json").write_text(json.dumps(fields))
    return folder


@pytest.fixture
async def client(tmp_path):
    async with serving(tiny_settings(tmp_path), tiny_base(MODEL)) as server:
        await server.client.adapters.upload("style", prompt_folder(tmp_path / "style"))
        lora = save_random_adapter(MODEL, LORA, tmp_path / "lora", seed=1, strength=0.3)
        await server.client.adapters.upload("lora", lora)
        both = save_random_adapter(MODEL, LORA, tmp_path / "both", seed=1, strength=0.3)
        prompt_folder(both)
        # From the server's own disk, where the others are sent to it.
        await server.client.adapters.create("both", str(both))
        yield server.client


async def answer(client, prompt, **options):
    result = await client.generate(prompt, max_tokens=6, ignore_eos=True, **options)
    return result.choices[0].token_ids, result.usage.prompt_tokens


@pytest.mark.parametrize(
    ("adapter", "weights"),
    [
        ({"adapter": "style"}, {}),
        ({"adapter": "both"}, {"adapter": "lora"}),
        ({"adapters": {"style": 1, "lora": 1}}, {"adapter": "lora"}),
        (
            {"adapters": {"style": 1, "lora": 1}, "adapter_scale": 0.5},
            {"adapter": "lora", "adapter_scale": 0.5},
        ),
    ],
)
async def test_a_version_answers_as_its_weights_do_with_the_prompt(client, adapter, weights):
    said = [Message("user", "hi")]
    assert await answer(client, said, **adapter) == await answer(client, FRAMED, **weights)
    framed_text = TEMPLATE.replace("{input}", "hi")
    assert await answer(client, "hi", **adapter) == await answer(client, framed_text, **weights)
    assert (await answer(client, [5, 6], **adapter))[1] == 2
    scored = [
        (await client.score(prompt, [[9, 10]], **options)).scores
        for prompt, options in ((said, adapter), (FRAMED, weights))
    ]
    assert scored[0] == scored[1]


async def test_a_prompt_is_a_version_like_any_other(client, tmp_path):
    version = await client.adapters.get_version("style")
    assert (version.method, version.rank, version.num_parameters) == ("PROMPT_ONLY", 0, 0)
    served = (await client.generate("hi", adapter="style", max_tokens=1)).served_by
    assert (str(served), served.digest) == ("style@1", version.digest)
    await client.adapters.load("style")

    other = prompt_folder(tmp_path / "other", {"template": "{input}!"})
    second = await client.adapters.upload("style", other, make_live=True)
    assert (second.version, second.digest != version.digest) == (2, True)
    assert await answer(client, "hi", adapter="style") == await answer(client, "hi!")
    await client.adapters.rollback("style")
    assert (await client.generate("hi", adapter="style", max_tokens=1)).served_by == served

    for name in ("style@1", "both"):
        copy = tmp_path / f"copy-{name}"
        await client.adapters.download(name, copy)
        assert json.loads((copy / "graftwork_prompt.json").read_text()) == PROMPT
    assert {path.name for path in copy.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "graftwork_prompt.json",
    }


async def test_two_prompts_are_refused(client):
    with pytest.raises(FailedPrecondition, match="carries a prompt too"):
        await client.generate("hi", adapters={"style": 1, "both": 1})
