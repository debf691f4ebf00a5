"""The `wan-ray` command: arguments become a config, a config one call. Exit codes stand in main()."""

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from wan_ray.config import RenderConfig, load_config
from wan_ray.errors import ConfigError, WanRayError
from wan_ray.speed.settings import add_engine_arguments
from wan_ray.stages.planning import Plan, plan_manifest

OK, STOPPED, INVALID, SOME_FAILED = 0, 1, 2, 3
INTERRUPTED = 128 + signal.SIGINT
_SHOWN_ERRORS = 50


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0: done, all rows rendered. 1: stopped midway, the same command goes on from there. 2: nothing started, config,
    manifest or arguments are invalid. 3: finished, some rows failed. 130: interrupted.
    """
    options = _parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        with _sigterm_as_interrupt():
            return options.run(options)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return INVALID
    except WanRayError as error:
        print(f"error: {error}", file=sys.stderr)
        return STOPPED
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != signal.SIGTERM:  # as Ray ends a process while it starts itself
            raise
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM, which job servers and Kubernetes send, ends what Ctrl-C ends in the same way."""
    if threading.current_thread() is not threading.main_thread():  # where signals cannot be taken
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options; overrides may also stand after flags, where argparse itself does not look for them."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and ("overrides" not in options or any(word.startswith("-") or "=" not in word for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="wan-ray", description="Render manifests of prompts with Wan2.1 on Ray.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    render = commands.add_parser("render", help="render every row of a manifest that has no record yet")
    _add_config_arguments(render)
    render.add_argument(
        "--skip-invalid", action="store_true", help="record rows that break a rule as failed, and go on"
    )
    render.add_argument(
        "--retry", metavar="failed[:TYPE,...]", help="also rows whose last attempt failed, of these error types"
    )
    render.add_argument(
        "--changed",
        choices=("refuse", "rerender"),
        default="refuse",
        help="rows that ask for something else than their record says (default: refuse to start)",
    )
    render.set_defaults(run=_render)
    plan = commands.add_parser("plan", help="check config and every row without loading a model")
    _add_config_arguments(plan)
    plan.set_defaults(run=_plan)
    inspect = commands.add_parser("inspect", help="what a checkpoint is, what it lacks, and what memory it takes")
    inspect.add_argument("checkpoint", help="a folder, a lone DiT file, or the URL of either")
    inspect.add_argument("--companions", help="folder with text encoder, VAE and tokenizer, for a lone DiT")
    inspect.set_defaults(run=_inspect)
    status = commands.add_parser("status", help="how far an output folder is, how fast it goes, and what failed")
    status.add_argument("output", help="the output folder or URL")
    status.add_argument("--json", action="store_true", help="for scripts: one JSON object")
    status.set_defaults(run=_status)
    report = commands.add_parser("report", help="write a page with plots, failures and a contact sheet")
    report.add_argument("output", help="the output folder or URL")
    report.add_argument("--out", type=Path, metavar="FILE", help="write it here, not to report.html in the output")
    report.set_defaults(run=_report)
    gc = commands.add_parser("gc", help="remove what runs that were cut short left behind, and merge the index")
    gc.add_argument("output", help="the output folder or URL")
    gc.add_argument("--older-than", type=float, default=24.0, metavar="HOURS", help="spare younger files (default 24)")
    gc.add_argument("--dry-run", action="store_true", help="say what would go")
    gc.set_defaults(run=_gc)
    _add_extend(commands)
    replay = commands.add_parser("replay", help="render a record's clip again, and say whether it is the same")
    replay.add_argument("record", help="path or URL of a record, OUTPUT/records/NAME.json")
    replay.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. model.checkpoint=/models/moved")
    replay.add_argument("--out", type=Path, metavar="FILE", help="keep the new clip here")
    replay.set_defaults(run=_replay)
    serve = commands.add_parser("serve", help="answer HTTP: /v1/videos, and a page to try it in")
    serve.add_argument("config", help="YAML file")
    serve.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. serve.port=8080")
    serve.add_argument("--output", help="folder or URL where jobs and clips are kept, instead of the config's")
    serve.set_defaults(run=_serve)
    key = commands.add_parser("key", help="make an API key for `wan-ray serve`; it is shown this once")
    key.add_argument("name", help="whose it is; jobs belong to the name")
    key.set_defaults(run=_key)
    debug = commands.add_parser("init-debug", help="write a tiny checkpoint, a sample manifest and a config")
    debug.add_argument("folder", type=Path)
    debug.add_argument("--task", choices=["t2v", "i2v"], default="t2v", help="what its rows ask for (default t2v)")
    debug.add_argument("--random", action="store_true", help="random weights in place of the trained demo model")
    debug.set_defaults(run=_init_debug)
    _add_bench(commands)
    return parser


def _add_bench(commands: Any) -> None:
    bench = commands.add_parser("bench", help="time this engine beside diffusers, or by itself")
    bench.add_argument("--json", type=Path, help="also write the figures to this file")
    bench.add_argument("--clips", type=int, default=5, help="clips per engine, alternating (default 5)")
    kind = bench.add_mutually_exclusive_group()
    kind.add_argument("--engine", action="store_true", help="parts of a model, each by itself, on this machine's GPU")
    kind.add_argument("--quality", action="store_true", help="what each shortcut saves and what it costs")
    quality = bench.add_argument_group("with --quality")
    quality.add_argument("--checkpoint", type=Path, help="folder of weights (default: small random ones)")
    quality.add_argument("--steps", type=int, default=50, help="of the exact clips (default 50)")
    add_engine_arguments(bench.add_argument_group("with --engine; size, frames, device and dtype with --quality too"))
    bench.set_defaults(run=_bench)


def _add_extend(commands: Any) -> None:
    extend = commands.add_parser(
        "extend", help="rewrite a manifest's prompts ahead of a run, and show before and after"
    )
    extend.add_argument("manifest", help="Parquet file, folder or URL; rows with extend_prompt false stay as they are")
    extend.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. extend.language=zh")
    extend.add_argument("-o", "--out", required=True, metavar="FILE", help="the manifest to write")
    extend.add_argument("--config", required=True, metavar="FILE", help="YAML file with a section `extend`")
    extend.set_defaults(run=_extend)


def _add_config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. video.crf=18 defaults.num_frames=33")
    parser.add_argument("--manifest", help="Parquet file, folder or URL, instead of the config's")
    parser.add_argument("--output", help="folder or URL, instead of the config's")
    parser.add_argument("--limit", type=int, help="only the first rows of the manifest")


def _config_and_plan(options: argparse.Namespace) -> tuple[RenderConfig, Plan]:
    config = load_config(options.config, options.overrides)
    named = {name: getattr(options, name) for name in ("manifest", "output") if getattr(options, name)}
    config = config.model_copy(update=named)
    return config, plan_manifest(config, limit=options.limit)


def _plan(options: argparse.Namespace) -> int:
    from wan_ray.plan import plan_lines

    config, plan = _config_and_plan(options)
    for line in plan_lines(config, plan):
        print(line)
    _print_invalid(plan, sys.stdout)
    return INVALID if plan.refused else OK


def _render(options: argparse.Namespace) -> int:
    from wan_ray.stages.agenda import Again

    again = Again.from_options(options.retry, options.changed)
    config, plan = _config_and_plan(options)
    if plan.refused and not options.skip_invalid:
        _print_invalid(plan, sys.stderr)
        raise ConfigError(f"{len(plan.refused)} of {len(plan.names)} rows are invalid; mend them or use --skip-invalid")
    # Ray's core prints a harmless error for every actor pool (ray-project/ray#53727); real ones arrive as exceptions.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    from wan_ray.display import Display
    from wan_ray.graph.run import render
    from wan_ray.report.clips import write_contact_sheet
    from wan_ray.storage.blob import Store
    from wan_ray.storage.paths import CLIPS, CONTACT_SHEET, INDEX

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # after its import, which sets the level
    display = Display()
    try:
        summary = render(config, plan, observer=display, again=again)
    finally:
        display.close()
    assert config.output is not None
    store = Store(config.output)
    if summary.rendered:
        write_contact_sheet(config.output)
    print(
        f"{summary.ok} of {len(plan.names)} rows have a clip, {summary.failed} failed; "
        f"rendered {summary.rendered} now in {summary.seconds:.0f} s, {summary.skipped} were done before"
    )
    print(f"clips          {store.location(CLIPS)}\nindex          {store.location(INDEX)}")
    if store.exists(CONTACT_SHEET):
        print(f"contact sheet  {store.location(CONTACT_SHEET)}")
    return SOME_FAILED if summary.failed else OK


def _print_invalid(plan: Plan, stream: TextIO) -> None:
    if plan.refused:
        print("\ninvalid rows (counted from 0):", file=stream)
    for item in plan.refused[:_SHOWN_ERRORS]:
        print(f"  row {item.row}  id {item.id}: {item.failure and item.failure.message}", file=stream)
    if len(plan.refused) > _SHOWN_ERRORS:
        print(f"  and {len(plan.refused) - _SHOWN_ERRORS} more", file=stream)


def _inspect(options: argparse.Namespace) -> int:
    from wan_ray.inspect_checkpoint import describe, inspect_checkpoint

    found = inspect_checkpoint(options.checkpoint, options.companions)
    print(describe(found))
    return OK if found.is_usable else INVALID


def _status(options: argparse.Namespace) -> int:
    from wan_ray.report.status import as_json, as_text, read_status

    status = read_status(options.output)
    text = as_json(status) if options.json else as_text(status)
    try:
        print(text, flush=True)
    except BrokenPipeError:  # who reads it has seen enough, as head has; Python flushes once more as it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return OK


def _report(options: argparse.Namespace) -> int:
    from wan_ray.report.page import write_report

    print(f"report  {write_report(options.output, options.out)}")
    return OK


def _gc(options: argparse.Namespace) -> int:
    from wan_ray.storage.blob import Store
    from wan_ray.storage.waste import clear, find_waste

    store = Store(options.output)
    waste = find_waste(store, older_than_s=3600 * options.older_than)
    for one in waste:
        print(f"{one.size_bytes:>12}  {one.key}  {one.why}")
    if not options.dry_run:
        clear(store, waste)
    verb = "would be removed" if options.dry_run else "removed"
    print(f"{len(waste)} files {verb}, {sum(one.size_bytes for one in waste) / 1e6:.1f} MB")
    return OK


def _extend(options: argparse.Namespace) -> int:
    from wan_ray.extend_manifest import extend_manifest

    result = extend_manifest(load_config(options.config, options.overrides), options.manifest, options.out)
    for line in result.lines():
        print(line)
    print(f"\nmanifest  {options.out}")
    return SOME_FAILED if result.num_failed else OK


def _replay(options: argparse.Namespace) -> int:
    from wan_ray.replay import replay

    result = replay(options.record, options.overrides, out=options.out)
    print(result)
    return OK if result.is_same else SOME_FAILED


def _key(options: argparse.Namespace) -> int:
    from wan_ray.serving.keys import key_line, new_key, sha256_of
    from wan_ray.serving.webhooks import webhook_secret

    key = new_key()
    line = key_line(options.name, key)
    print(f"key             {key}\nwebhook secret  {webhook_secret(sha256_of(key))}\nline            {line}")
    return OK


def _serve(options: argparse.Namespace) -> int:
    config = load_config(options.config, options.overrides)
    if options.output:
        config = config.model_copy(update={"output": options.output})
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    from wan_ray.graph.online import KEYS_VARIABLE, serve_forever
    from wan_ray.serving.keys import Keys

    serve_forever(
        config,
        keys=Keys.open(config.serve.keys_file, more=os.environ.get(KEYS_VARIABLE, "")),
        ready=lambda url: print(f"serving {url}/ and {url}/v1/videos; Ctrl-C ends it", flush=True),
    )
    return OK


def _init_debug(options: argparse.Namespace) -> int:
    from wan_ray.sample import write_sample

    config = write_sample(options.folder, task=options.task, random=options.random)
    print(f"wrote a checkpoint, a manifest and a config; now: wan-ray render {config}")
    return OK


def _bench(options: argparse.Namespace) -> int:
    if options.engine:
        from wan_ray.speed.report import run_engine_bench

        return run_engine_bench(options)
    if options.quality:
        from wan_ray.bench_quality import run_quality_bench

        return run_quality_bench(options)
    from wan_ray.bench import run_bench

    return run_bench(num_clips=options.clips, json_file=options.json)


if __name__ == "__main__":
    sys.exit(main())
