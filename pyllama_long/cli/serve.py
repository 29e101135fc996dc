"""`serve`: an HTTP server with the routes of OpenAI, Anthropic and llama.cpp."""

from __future__ import annotations

from typing import Annotated

import typer

from pyllama_long.cli.command_error import CommandError
from pyllama_long.cli.model_options import ModelOptions, adapters
from pyllama_long.cli.options import Loras
from pyllama_long.cli.serve_options import Limits, Load, Network

EXAMPLES = """\b
[b]Examples[/b]
  pyllama-long serve -m model.gguf --ctx 131072
  pyllama-long serve -m model.gguf --parallel 8 --api-key-file keys.txt --host 0.0.0.0
  pyllama-long serve --hf ggml-org/gemma-3-1b-it-GGUF --cache-dir ~/.cache/pyllama-long --cache-disk 20
\b
  Ctrl-C finishes what is running, twice stops. The page for people is at /.
"""


def command(
    *,
    options: ModelOptions,
    lora: Loras = None,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="Give embeddings too.", rich_help_panel="Model")
    ] = False,
    network: Network,
    limits: Limits,
    load: Load,
) -> int:
    """Serve a model over HTTP, to many at once."""
    try:
        from pyllama_long.cli.serving import serve
        from pyllama_long.lora import check as check_adapter
        from pyllama_long.server import logs
        from pyllama_long.server.protocol import limited
        from pyllama_long.server.settings import Settings
    except ImportError as error:
        raise CommandError(f"the server needs the package {error.name}: pip install pyllama-long") from None
    tls, keys = network.tls(), limits.keys()
    path = options.path()
    options.info()  # refuse a bad file before the port is opened
    added = adapters(lora or ())
    for file, _ in added:
        check_adapter(file)
    config = {
        "model_path": options.file,
        "n_ctx": options.n_ctx(0) or options.default_ctx(),
        "attention": options.attention,
        "rope": options.rope,
        "kv_type": options.kv_type,
        "precision": options.precision,
        "n_threads": options.threads,
        "embedding": embeddings,
        "lora": added,
        **options.kept(),
        **load.config(),
    }
    load.check_folder()
    folder = load.folder()
    settings = Settings(
        model_name=network.alias or path.stem,
        api_keys=keys,
        cors_origins=tuple(network.cors_origin or ()),
        allowed_hosts=network.names(keys),
        max_body=limits.max_body << 20,
        overflow=limits.overflow,  # type: ignore[arg-type]
        drain_s=load.drain,
        request_timeout_s=limits.timeout,
        store_bytes=limits.keep_turns << 20,
        store=None if folder is None else folder / "turns.sqlite",
        page=network.page,
        keep_responses=load.keep_responses << 20,
    )
    try:
        limited(limits.max_connections)
    except ValueError as error:
        raise CommandError(f"--max-connections: {error}") from None
    logs.install(network.log_level)
    return serve(config, settings, network.host, network.port, tls, limits.max_connections)
