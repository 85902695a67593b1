"""Forms of conversations: each becomes the messages that it means, and the summary shows how."""

import json

import pytest

from txtrain.data.chat import ChatData
from txtrain.data.conversation import new_conversation
from txtrain.data.tokenizer import Byte
from txtrain.errors import UserError
from txtrain.generate.prompts import read_prompts

USER, ANSWER = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "four"}
SYSTEM = {"role": "system", "content": "Be brief."}
SAID = [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "four"}]
FORMS = {
    "ShareGPT": ({"conversations": SAID}, [USER, ANSWER], 0),
    "ShareGPT with system": ({"system": "Be brief.", "conversations": SAID}, [SYSTEM, USER, ANSWER], 0),
    "roles in conversations": ({"conversations": [USER, ANSWER]}, [USER, ANSWER], 0),
    "Alpaca": ({"instruction": "2 + 2?", "input": "", "output": "four"}, [USER, ANSWER], 1),
    "Alpaca with input": (
        {"instruction": "Add.", "input": "2 + 2", "output": "four"},
        [{"role": "user", "content": "Add.\n\n2 + 2"}, ANSWER],
        1,
    ),
    "Alpaca with system": (
        {"system": "Be brief.", "instruction": "2 + 2?", "output": "four"},
        [SYSTEM, USER, ANSWER],
        2,
    ),
    "prompt": ({"prompt": "2 + 2?", "completion": "four"}, [USER, ANSWER], 1),
    "prompt beside others": (
        {"prompt": "2 + 2?", "completion": "four", "instruction": "x", "conversations": []},
        [USER, ANSWER],
        1,
    ),
    "messages": ({"messages": [USER, ANSWER], "conversations": "of another field"}, [USER, ANSWER], 0),
}


@pytest.mark.parametrize("name", FORMS)
def test_each_form_is_the_messages_that_it_means(name):
    row, messages, given = FORMS[name]
    found = new_conversation(row, "line 1")
    assert (found.messages, found.given) == (messages, given)


def test_speakers_and_tools():
    said = [{"from": name, "value": "x"} for name in ("human", "function_call", "observation", "GPT")]
    row = {"conversations": said, "tools": '[{"name": "add"}]'}
    found = new_conversation(row, "line 1")
    assert [message["role"] for message in found.messages] == ["user", "assistant", "tool", "assistant"]
    assert found.tools == [{"name": "add"}]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"conversations": [{"from": "narrator", "value": "x"}]},
            "message 1 of conversations is from narrator: give one",
        ),
        ({"conversations": [{"value": "x"}]}, "message 1 of conversations has value: give from and value"),
        ({"conversations": []}, "messages is empty"),
        ({"instruction": "x"}, "give messages, or prompt and completion"),
        ({"text": "x"}, "line 1 has text: give messages"),
    ],
)
def test_what_is_no_form_is_one_line(row, message):
    with pytest.raises(UserError, match=message):
        new_conversation(row, "line 1")


def test_the_mapping_is_shown_and_prompts_have_the_same_forms(tmp_path):
    rows = [{"conversations": SAID}] * 12 + [{"instruction": "2 + 2?", "input": "", "output": "four"}] * 8
    file = tmp_path / "my.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ChatData(path=str(file), tokenizer=Byte(), seq_len=64, cache_dir=str(tmp_path / "cache"))
    data.prepare()
    assert data.details()["form"] == (
        "12 of ShareGPT: conversations: from → role (human → user, gpt → assistant), value → content; "
        "8 of Alpaca: instruction and input → user, output → assistant"
    )
    file.write_text(json.dumps({"conversations": SAID[:1]}) + "\n" + json.dumps({"instruction": "2 + 2?"}) + "\n")
    assert [prompt for _, prompt in read_prompts(str(file), chat=True)] == [[USER], [USER]]
