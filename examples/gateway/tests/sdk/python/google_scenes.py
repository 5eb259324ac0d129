"""The official Google Gen AI SDK against the gateway."""

from google import genai
from google.genai import errors, types

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


def connect(url=URL, key=KEY, headers=None):
    options = types.HttpOptions(base_url=url, timeout=TIMEOUT * 1000, headers=headers)
    return genai.Client(api_key=key, vertexai=False, http_options=options)


client = connect()
MODEL = "gemini-2.5-flash"
TOOLS = [
    types.Tool(
        function_declarations=[
            types.FunctionDeclaration(name="level", parameters_json_schema=SCHEMA),
            types.FunctionDeclaration(name="flow"),
        ]
    )
]


def config(**options):
    off = types.AutomaticFunctionCallingConfig(disable=True)
    return types.GenerateContentConfig(automatic_function_calling=off, **options)


def choose(mode, names=None):
    calling = types.FunctionCallingConfig(mode=mode, allowed_function_names=names)
    return config(tools=TOOLS, tool_config=types.ToolConfig(function_calling_config=calling))


def ask(client=client, model=MODEL, contents=QUESTION, config=None):
    return client.models.generate_content(model=model, contents=contents, config=config)


def fails(kind, code, call):
    error = raises(kind, call)
    assert error.code == code, error
    return error


@scene
def generate():
    answer = ask()
    is_sentences(answer.text)
    assert answer.candidates[0].finish_reason == types.FinishReason.STOP, answer
    usage = answer.usage_metadata
    assert usage.candidates_token_count == len(answer.text.split(" ")), usage
    assert usage.total_token_count == usage.prompt_token_count + usage.candidates_token_count, usage
    cut = ask(config=config(max_output_tokens=3))
    assert cut.candidates[0].finish_reason == types.FinishReason.MAX_TOKENS, cut


@scene
def count_of_tokens():
    counted = client.models.count_tokens(model=MODEL, contents=QUESTION)
    assert counted.total_tokens == ask().usage_metadata.prompt_token_count > 0, counted


@scene
def stream():
    chunks = list(client.models.generate_content_stream(model=MODEL, contents=QUESTION))
    text = "".join(chunk.text or "" for chunk in chunks)
    is_sentences(text)
    assert len(chunks) > 2 and chunks[-1].candidates[0].finish_reason == types.FinishReason.STOP, chunks[-1]
    assert chunks[-1].usage_metadata.candidates_token_count == len(text.split(" ")), chunks[-1]


@scene
def tools():
    answer = ask(config=config(tools=TOOLS))
    [call] = answer.function_calls
    assert (call.name, call.args) == ("level", ARGUMENTS), call
    result = types.Part.from_function_response(name="level", response={"metres": 2.1})
    turns = [
        types.Content(role="user", parts=[types.Part(text=QUESTION)]),
        answer.candidates[0].content,
        types.Content(role="user", parts=[result]),
    ]
    is_sentences(ask(contents=turns, config=config(tools=TOOLS)).text)


@scene
def choice_of_tools():
    def asked(mode, names=None):
        return [call.name for call in ask(config=choose(mode, names)).function_calls or []]

    assert asked("NONE") == []
    assert asked("AUTO") == asked("ANY") == ["level"]
    assert asked("ANY", ["flow"]) == ["flow"]


@scene
def streamed_tools():
    stream = client.models.generate_content_stream(model=MODEL, contents=QUESTION, config=config(tools=TOOLS))
    calls = [call for chunk in stream for call in chunk.function_calls or []]
    assert [(call.name, call.args) for call in calls] == [("level", ARGUMENTS)], calls


@scene
def embeddings():
    def embed(**options):
        answer = client.models.embed_content(
            model="gemini-embedding-001", contents=["river", "mill"], config=types.EmbedContentConfig(**options)
        )
        return [embedding.values for embedding in answer.embeddings]

    default = embed()
    assert [len(vector) for vector in default] == [3072, 3072]
    assert default[0] != default[1]
    assert [len(vector) for vector in embed(output_dimensionality=256)] == [256, 256]


@scene
def models():
    names = [model.name for model in client.models.list()]
    assert f"models/{MODEL}" in names, names
    assert client.models.get(model=MODEL).name == f"models/{MODEL}"
    fails(errors.ClientError, 404, lambda: client.models.get(model="none"))


@scene
def bad_request():
    error = fails(errors.ClientError, 400, lambda: ask(contents=""))
    assert error.status == "INVALID_ARGUMENT", error


@scene
def wrong_key():
    error = fails(errors.ClientError, 401, lambda: ask(connect(key="sk-wrong")))
    assert error.status == "UNAUTHENTICATED" and "sk-wrong" not in str(error), error


@scene
def too_large():
    for _ in range(TIMES_TOO_LARGE):
        fails(errors.ClientError, 413, lambda: ask(contents=TOO_LARGE))


@scene
def over_the_limit():
    limited = connect(url=LIMITED_URL)
    ask(limited)
    error = fails(errors.ClientError, 429, lambda: ask(limited))
    assert error.status == "RESOURCE_EXHAUSTED", error


@scene
def errors_of_the_provider():
    throttled = connect(headers={"x-sim-fault": "429"})
    fails(errors.ClientError, 429, lambda: ask(throttled, model="sim-429"))
    overloaded = connect(headers={"x-sim-fault": "overloaded"})
    fails(errors.ServerError, 503, lambda: ask(overloaded, model="sim-overloaded"))


main()
