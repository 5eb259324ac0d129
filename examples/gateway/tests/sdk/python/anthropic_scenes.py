"""The official Anthropic SDK against the gateway."""

import anthropic
from anthropic import Anthropic

from scenes import (
    ARGUMENTS,
    KEY,
    LIMITED_URL,
    QUESTION,
    SCHEMA,
    TIMEOUT,
    TIMES_TOO_LARGE,
    TOO_LARGE,
    URL,
    is_sentences,
    main,
    raises,
    scene,
)


def connect(url=URL, key=KEY, **options):
    return Anthropic(base_url=url, api_key=key, timeout=TIMEOUT, max_retries=0, **options)


client = connect()
MODEL = "claude-sonnet-4-5"
MESSAGES = [{"role": "user", "content": QUESTION}]
TOOLS = [{"name": "level", "input_schema": SCHEMA}, {"name": "flow", "input_schema": {"type": "object"}}]


def ask(client=client, **options):
    return client.messages.create(**{"model": MODEL, "max_tokens": 99, "messages": MESSAGES, **options})


@scene
def message():
    answer = ask()
    assert (answer.type, answer.role, answer.model, answer.stop_reason) == (
        "message",
        "assistant",
        MODEL,
        "end_turn",
    ), answer
    [block] = answer.content
    is_sentences(block.text)
    assert answer.usage.output_tokens == len(block.text.split(" ")), answer
    assert answer._request_id, "request-id reaches the caller"
    assert ask(max_tokens=3).stop_reason == "max_tokens"


@scene
def count_of_tokens():
    counted = client.messages.count_tokens(model=MODEL, messages=MESSAGES, system="Be brief.")
    used = ask(system="Be brief.").usage.input_tokens
    assert counted.input_tokens == used > 0, (counted, used)


@scene
def stream():
    with client.messages.stream(model=MODEL, max_tokens=99, messages=MESSAGES) as stream:
        text = "".join(stream.text_stream)
        answer = stream.get_final_message()
    is_sentences(text)
    assert answer.content[0].text == text and answer.stop_reason == "end_turn", answer
    assert answer.usage.output_tokens == len(text.split(" ")), answer
    assert answer.usage.input_tokens == ask().usage.input_tokens, answer


@scene
def tools():
    answer = ask(tools=TOOLS)
    [call] = answer.content
    assert (answer.stop_reason, call.type, call.name) == ("tool_use", "tool_use", "level"), answer
    assert call.input == ARGUMENTS, call
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "2.1"}]}
    after = ask(tools=TOOLS, messages=[*MESSAGES, {"role": "assistant", "content": answer.content}, result])
    is_sentences(after.content[0].text)


@scene
def choice_of_tools():
    def asked(choice):
        answer = ask(tools=TOOLS, tool_choice=choice)
        return [block.name for block in answer.content if block.type == "tool_use"]

    assert asked({"type": "none"}) == []
    assert asked({"type": "auto"}) == asked({"type": "any"}) == ["level"]
    assert asked({"type": "tool", "name": "flow"}) == ["flow"]


@scene
def streamed_tools():
    with client.messages.stream(model=MODEL, max_tokens=99, messages=MESSAGES, tools=TOOLS) as stream:
        answer = stream.get_final_message()
    [call] = answer.content
    assert (call.name, call.input, answer.stop_reason) == ("level", ARGUMENTS, "tool_use"), answer


@scene
def models():
    listed = list(client.models.list())
    assert [model.type for model in listed] == ["model"] * len(listed) and listed, listed
    assert client.models.retrieve(listed[0].id).display_name == listed[0].display_name
    error = raises(anthropic.NotFoundError, lambda: client.models.retrieve("none"))
    assert error.body["error"]["type"] == "not_found_error", error


@scene
def bad_request():
    error = raises(anthropic.BadRequestError, lambda: ask(messages=[]))
    assert error.body["error"]["type"] == "invalid_request_error", error
    raises(anthropic.BadRequestError, lambda: ask(model=""))


@scene
def wrong_key():
    error = raises(anthropic.AuthenticationError, lambda: ask(connect(key="sk-wrong")))
    assert error.body["error"]["type"] == "authentication_error" and "sk-wrong" not in str(error), error


@scene
def too_large():
    large = [{"role": "user", "content": TOO_LARGE}]
    for _ in range(TIMES_TOO_LARGE):
        error = raises(anthropic.RequestTooLargeError, lambda: ask(messages=large))
        assert error.body["error"]["type"] == "request_too_large", error


@scene
def over_the_limit():
    limited = connect(url=LIMITED_URL)
    ask(limited)
    error = raises(anthropic.RateLimitError, lambda: ask(limited))
    assert error.body["error"]["type"] == "rate_limit_error", error
    # The longest that the SDKs wait for.
    assert 0 < int(error.response.headers["retry-after"]) <= 120, error.response.headers


@scene
def errors_of_the_provider():
    overloaded = connect(default_headers={"x-sim-fault": "overloaded"})
    error = raises(anthropic.OverloadedError, lambda: ask(overloaded, model="sim-overloaded"))
    assert error.status_code == 529, error
    throttled = connect(default_headers={"x-sim-fault": "429"})
    raises(anthropic.RateLimitError, lambda: ask(throttled, model="sim-429"))


main()
