"""Python clients against a server: `python python_clients.py URL NAME` tries one, and exits with 0 when it works.

Each check uses the client as its own documentation does and raises when what came back is not what the client promises.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
from pydantic import BaseModel, Field

KEY = "sk-none"


class Person(BaseModel):
    """A person."""

    name: str
    age: int = Field(ge=0, le=150)


PERSON = "Give me the person of this text as data: Ada is 36 years old."


def model_of(url: str) -> str:
    return str(httpx.get(f"{url}/v1/models").json()["data"][0]["id"])


def lm_eval(url: str) -> str:
    """Scores a multiple-choice task with echo and logprobs, and generates for another."""
    import lm_eval
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model

    client = get_model("local-completions").create_from_arg_string(
        f"model={model_of(url)},base_url={url}/v1/completions,tokenizer_backend=remote,num_concurrent=2,max_retries=1"
    )
    score = [
        Instance("loglikelihood", {}, ("The capital of France is", end), i)
        for i, end in enumerate((" Paris", " a banana"))
    ]
    (good, _), (bad, _) = client.loglikelihood(score)
    if not good > bad:
        raise AssertionError(f"log-likelihoods {good} and {bad}")
    text = client.generate_until(
        [Instance("generate_until", {}, ("1, 2, 3, 4,", {"until": ["\n"], "max_gen_toks": 8}), 0)]
    )
    return f"lm-eval {lm_eval.__version__}: {good:.2f} > {bad:.2f}; {text[0]!r}"


def pydantic_chat(url: str) -> str:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    agent = Agent(
        OpenAIChatModel(model_of(url), provider=OpenAIProvider(base_url=f"{url}/v1", api_key=KEY)),
        output_type=Person,
    )
    return str(agent.run_sync(PERSON).output)


def pydantic_responses(url: str) -> str:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    agent = Agent(
        OpenAIResponsesModel(model_of(url), provider=OpenAIProvider(base_url=f"{url}/v1", api_key=KEY)),
        output_type=Person,
    )
    return str(agent.run_sync(PERSON).output)


def pydantic_anthropic(url: str) -> str:
    """NativeOutput: output_config.format of /v1/messages."""
    from pydantic_ai import Agent, NativeOutput
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.profiles.anthropic import AnthropicModelProfile
    from pydantic_ai.providers.anthropic import AnthropicProvider

    model = AnthropicModel(
        model_of(url),
        provider=AnthropicProvider(base_url=url, api_key=KEY),
        profile=AnthropicModelProfile(supports_json_schema_output=True),
    )
    return str(Agent(model, output_type=NativeOutput(Person)).run_sync(PERSON).output)


def instructor(url: str) -> str:
    import instructor
    from openai import OpenAI

    texts = []
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON, instructor.Mode.JSON_SCHEMA):
        client = instructor.from_openai(OpenAI(base_url=f"{url}/v1", api_key=KEY), mode=mode)
        found = client.chat.completions.create(
            model=model_of(url),
            response_model=Person,
            messages=[{"role": "user", "content": PERSON}],
            max_retries=1,
            temperature=0,
        )
        texts.append(f"{mode.name} {found.name} {found.age}")
    return ", ".join(texts)


def llama_index(url: str) -> str:
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai_like import OpenAILike

    llm = OpenAILike(
        model=model_of(url),
        api_base=f"{url}/v1",
        api_key=KEY,
        is_chat_model=True,
        context_window=8192,
        max_tokens=32,
    )
    whole = llm.chat(
        [ChatMessage(role="system", content="Be short."), ChatMessage(role="user", content="Say hello.")]
    )
    parts = [
        part.delta or "" for part in llm.stream_chat([ChatMessage(role="user", content="Count to five.")])
    ]
    plain = OpenAILike(
        model=model_of(url), api_base=f"{url}/v1", api_key=KEY, is_chat_model=False, max_tokens=8
    )
    return f"{whole.message.content!r} {''.join(parts)!r} {plain.complete('1, 2, 3,').text!r}"


def guidance(url: str) -> str:
    """Chat through guidance's OpenAI model."""
    from guidance import assistant, gen, system, user
    from guidance.models import OpenAI

    lm = OpenAI(model_of(url), base_url=f"{url}/v1", api_key=KEY, echo=False)
    with system():
        lm += "Be short."
    with user():
        lm += "Say hello."
    with assistant():
        lm += gen("said", max_tokens=16)
    return repr(lm["said"])


def outlines(url: str) -> str:
    import outlines
    from openai import OpenAI

    model = outlines.from_openai(OpenAI(base_url=f"{url}/v1", api_key=KEY), model_of(url))
    return str(Person.model_validate_json(model(PERSON, Person)))


def smolagents(url: str) -> str:
    from smolagents import OpenAIModel, ToolCallingAgent, tool

    @tool
    def weather(city: str) -> str:
        """The weather of a city.

        Args:
            city: its name
        """
        return f"Sunny, 21 degrees in {city}."

    model = OpenAIModel(model_id=model_of(url), api_base=f"{url}/v1", api_key=KEY, max_tokens=256)
    message = model.generate(
        [{"role": "user", "content": [{"type": "text", "text": "Call weather for Rome."}]}],
        tools_to_call_from=[weather],
    )
    call = message.tool_calls[0].function
    ToolCallingAgent(tools=[weather], model=model, max_steps=2, verbosity_level=0).run(
        "What is the weather in Rome?"
    )
    return f"{call.name}({call.arguments})"


def promptfoo(url: str) -> str:
    """Run by the node client's folder: one test with a fixed answer."""
    config = {
        "description": "one",
        "prompts": ["Answer with the one word yes."],
        "providers": [
            {
                "id": f"openai:chat:{model_of(url)}",
                "config": {"apiBaseUrl": f"{url}/v1", "apiKey": KEY, "max_tokens": 8, "temperature": 0},
            }
        ],
        "tests": [{"assert": [{"type": "icontains", "value": "yes"}]}],
    }
    with TemporaryDirectory() as folder:
        Path(folder, "c.json").write_text(json.dumps(config))
        subprocess.run(
            [
                "promptfoo",
                "eval",
                "-c",
                "c.json",
                "-o",
                "out.json",
                "--no-cache",
                "--no-table",
                "--no-progress-bar",
            ],
            cwd=folder,
            check=True,
            capture_output=True,
            timeout=300,
        )
        result = json.loads(Path(folder, "out.json").read_text())["results"]["results"][0]
    if not result["success"]:
        raise AssertionError(result.get("error") or result["response"])
    return repr(result["response"]["output"])


CLIENTS: dict[str, Callable[[str], str]] = {
    f.__name__: f
    for f in (
        lm_eval,
        pydantic_chat,
        pydantic_responses,
        pydantic_anthropic,
        instructor,
        llama_index,
        guidance,
        outlines,
        smolagents,
        promptfoo,
    )
}

if __name__ == "__main__":
    print(CLIENTS[sys.argv[2]](sys.argv[1]))
