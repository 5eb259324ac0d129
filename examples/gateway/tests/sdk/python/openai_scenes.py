"""The official OpenAI SDK against the gateway."""

import base64
import json
import struct

import openai
from openai import OpenAI

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
    return OpenAI(base_url=f"{url}/v1", api_key=key, timeout=TIMEOUT, max_retries=0, **options)


client = connect()
MODEL = "gpt-5-mini"
MESSAGES = [{"role": "user", "content": QUESTION}]
TOOL = {"type": "function", "function": {"name": "level", "parameters": SCHEMA}}
OTHER_TOOL = {"type": "function", "function": {"name": "flow", "parameters": {"type": "object", "properties": {}}}}


@scene
def chat():
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert (answer.object, answer.model) == ("chat.completion", MODEL), answer
    choice = answer.choices[0]
    assert (choice.finish_reason, choice.message.role) == ("stop", "assistant"), choice
    is_sentences(choice.message.content)
    usage = answer.usage
    assert usage.completion_tokens == len(choice.message.content.split(" ")), usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage
    assert usage.prompt_tokens_details.cached_tokens == 0, usage
    assert answer._request_id, "x-request-id reaches the caller"


@scene
def chat_is_cut_at_the_maximum():
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_completion_tokens=3)
    choice = answer.choices[0]
    assert choice.finish_reason == "length" and answer.usage.completion_tokens == 3, answer
    assert len(choice.message.content.split(" ")) == 3, choice


@scene
def stream_with_usage():
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    is_sentences(text)
    assert [chunk.usage is not None for chunk in chunks].count(True) == 1, chunks
    assert chunks[-1].usage.completion_tokens == len(text.split(" ")), chunks[-1]
    assert chunks[-2].choices[0].finish_reason == "stop", chunks[-2]
    assert len({chunk.id for chunk in chunks}) == 1, "all chunks are of one completion"


@scene
def stream_without_usage():
    chunks = list(client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True))
    assert all(chunk.usage is None for chunk in chunks), chunks
    assert chunks[-1].choices[0].finish_reason == "stop", chunks[-1]


@scene
def tools():
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, tools=[TOOL, OTHER_TOOL])
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None, choice
    [call] = choice.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("level", ARGUMENTS), call

    result = {"role": "tool", "tool_call_id": call.id, "content": "2.1"}
    turns = [*MESSAGES, choice.message, result]
    answer = client.chat.completions.create(model=MODEL, messages=turns, tools=[TOOL, OTHER_TOOL])
    is_sentences(answer.choices[0].message.content)


@scene
def choice_of_tools():
    def asked(choice):
        answer = client.chat.completions.create(
            model=MODEL, messages=MESSAGES, tools=[TOOL, OTHER_TOOL], tool_choice=choice
        )
        calls = answer.choices[0].message.tool_calls or []
        return [call.function.name for call in calls]

    assert asked("none") == []
    assert asked("auto") == asked("required") == ["level"]
    assert asked({"type": "function", "function": {"name": "flow"}}) == ["flow"]


@scene
def streamed_tools():
    with client.chat.completions.stream(model=MODEL, messages=MESSAGES, tools=[TOOL]) as stream:
        events = [event.type for event in stream]
        answer = stream.get_final_completion()
    assert "tool_calls.function.arguments.done" in events, events
    [call] = answer.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("level", ARGUMENTS), call


@scene
def structured_output():
    schema = {"type": "json_schema", "json_schema": {"name": "level", "schema": SCHEMA, "strict": True}}
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, response_format=schema)
    assert json.loads(answer.choices[0].message.content) == ARGUMENTS, answer


@scene
def embeddings():
    def embed(is_repeated=False, **options):
        answer = client.embeddings.create(model="text-embedding-3-small", input=["river", "mill"], **options)
        assert [item.index for item in answer.data] == [0, 1], answer
        assert answer.usage.prompt_tokens == answer.usage.total_tokens, answer
        # The gateway sends no input again, so it costs nothing again.
        assert (answer.usage.total_tokens == 0) == is_repeated, answer
        return [item.embedding for item in answer.data]

    # The SDK asks for base64 by default and decodes it; what it makes of it must be what the numbers say.
    default, numbers = embed(), embed(encoding_format="float")
    encoded = embed(is_repeated=True, encoding_format="base64")
    assert [len(vector) for vector in default] == [1536, 1536]
    as_f32 = [[struct.unpack("<f", struct.pack("<f", n))[0] for n in vector] for vector in numbers]
    assert default == as_f32, "the default and the numbers differ"
    decoded = [list(struct.unpack("<1536f", base64.b64decode(vector))) for vector in encoded]
    assert decoded == as_f32, "base64 and the numbers differ"
    assert abs(sum(n * n for n in default[0]) - 1) < 1e-3, "the length is one"
    assert default[0] != default[1]
    assert [len(vector) for vector in embed(dimensions=256)] == [256, 256]


@scene
def responses():
    answer = client.responses.create(model=MODEL, input=QUESTION)
    assert (answer.status, answer.error) == ("completed", None), answer
    is_sentences(answer.output_text)
    assert answer.usage.output_tokens == len(answer.output_text.split(" ")), answer
    cut = client.responses.create(model=MODEL, input=QUESTION, max_output_tokens=3)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens"), cut


@scene
def streamed_responses():
    with client.responses.stream(model=MODEL, input=QUESTION) as stream:
        events = list(stream)
        answer = stream.get_final_response()
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == answer.output_text, (text, answer)
    assert events[-1].type == "response.completed" and answer.usage.output_tokens > 0, answer


@scene
def tools_of_responses():
    tool = {"type": "function", "name": "level", "parameters": SCHEMA, "strict": True}
    answer = client.responses.create(model=MODEL, input=QUESTION, tools=[tool])
    [call] = answer.output
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "level", ARGUMENTS), call
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "2.1"}
    after = client.responses.create(
        model=MODEL, input=[*({"role": "user", "content": QUESTION},), call, result], tools=[tool]
    )
    is_sentences(after.output_text)

    with client.responses.stream(model=MODEL, input=QUESTION, tools=[tool]) as stream:
        events = [event.type for event in stream]
        [streamed] = stream.get_final_response().output
    assert "response.function_call_arguments.done" in events, events
    assert (streamed.name, json.loads(streamed.arguments)) == ("level", ARGUMENTS), streamed


@scene
def models():
    names = [model.id for model in client.models.list()]
    assert "sim-1" in names, names
    assert client.models.retrieve("sim-1").object == "model"
    error = raises(openai.NotFoundError, lambda: client.models.retrieve("none"))
    assert error.code == "model_not_found", error


@scene
def bad_request():
    error = raises(openai.BadRequestError, lambda: client.chat.completions.create(model=MODEL, messages=[]))
    assert (error.code, error.param, error.type) == ("empty_array", "messages", "invalid_request_error"), error
    raises(openai.BadRequestError, lambda: client.chat.completions.create(model="", messages=MESSAGES))
    raises(openai.BadRequestError, lambda: client.embeddings.create(model=MODEL, input=""))
    raises(openai.BadRequestError, lambda: client.responses.create(model=MODEL, input=[]))


@scene
def wrong_key():
    stranger = connect(key="sk-wrong")
    error = raises(
        openai.AuthenticationError, lambda: stranger.chat.completions.create(model=MODEL, messages=MESSAGES)
    )
    assert error.status_code == 401 and "sk-wrong" not in str(error), error
    raises(openai.AuthenticationError, lambda: list(stranger.models.list()))


@scene
def too_large():
    large = [{"role": "user", "content": TOO_LARGE}]
    for _ in range(TIMES_TOO_LARGE):
        error = raises(
            openai.APIStatusError, lambda: client.chat.completions.create(model=MODEL, messages=large)
        )
        assert error.status_code == 413 and error.body["message"], error


@scene
def over_the_limit():
    limited = connect(url=LIMITED_URL)
    ask = lambda: limited.chat.completions.create(model=MODEL, messages=MESSAGES)
    ask()
    error = raises(openai.RateLimitError, ask)
    # The longest that the SDKs wait for.
    assert 0 < int(error.response.headers["retry-after"]) <= 120, error.response.headers
    assert error.body["message"], error


@scene
def errors_of_the_provider():
    def ask(fault):
        # A model for each fault: the gateway closes what fails.
        faulty = connect(default_headers={"x-sim-fault": fault})
        return faulty.chat.completions.create(model=f"sim-{fault}", messages=MESSAGES)

    assert raises(openai.RateLimitError, lambda: ask("429")).code == "rate_limit_exceeded"
    assert raises(openai.InternalServerError, lambda: ask("500")).status_code == 500


main()
