"""What each verb does: ask the pipeline, print the rows."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from targets import TARGETS
from tune.cli.nouns import model_of, models_of, network_of, place_of, target_of, write_json
from tune.errors import GateError, SetupError, UsageError

if TYPE_CHECKING:
    import argparse

    from targets.target import Target


def run(options: argparse.Namespace) -> None:
    from tune import pipeline
    from tune.report import networks_table, progress_line, tuning_table

    models = models_of(options)
    target, log, site = place_of(options, measures=True)
    live = sys.stderr.isatty()
    for event in pipeline.tune(
        [model.layers for model in models],
        target,
        log,
        site=site,
        budget_s=options.budget,
        trials=options.trials,
        effort=options.effort,
        kernels=options.kernel,
        seed=options.seed,
    ):
        line = progress_line(event)
        print(f"\r\x1b[K{line[:100]}" if live else line, end="" if live else "\n", file=sys.stderr)
    if live:
        print(file=sys.stderr)
    found = {
        model.title: pipeline.winners(
            model.layers, target, log, threads=site.threads, estimator=options.estimator
        )
        for model in models
    }
    several, rows = len(models) > 1, list(found.values())
    print(networks_table(found) if several else tuning_table(rows[0]))
    print(f"log: {log.path}")
    write_json(options, found if several else rows[0])


def build(options: argparse.Namespace) -> None:
    from tune import pipeline
    from tune.report import plan_summary

    model = model_of(options)
    target, log, site = place_of(options)
    manifest = pipeline.build(
        model,
        target,
        log,
        threads=site.threads,
        weights=options.weights,
        seed=options.seed,
        output=options.output,
        input_dtype="uint8" if options.input == "uint8" else None,
        require_tuned=options.require_tuned,
        allow_estimates=options.allow_estimates,
    )
    print(plan_summary(manifest))
    print(f"library: {options.output}")
    write_json(options, manifest)


def explain(options: argparse.Namespace) -> None:
    from tune import pipeline
    from tune.report import plan_table

    model = model_of(options)
    target, log, site = place_of(options)
    rows = pipeline.explain(model, target, log, threads=site.threads, code=options.code)
    print(plan_table(rows))
    write_json(options, rows)


def classify(options: argparse.Namespace) -> None:
    from tune import pipeline

    for photo, likeliest in pipeline.classify(
        options.lib, options.photo, options.threads, options.rpc, options.rpc_key
    ):
        print(photo)
        for probability, label in likeliest:
            print(f"  {probability:6.3f}  {label}")


def bench(options: argparse.Namespace) -> None:
    from tune import pipeline
    from tune.report.comparison import comparison_table, comparisons_table, tally_table

    models = models_of(options)
    if len(models) > 1 and (options.lib is not None or options.weights is not None):
        raise UsageError(
            f"--lib and --weights are of one network; expected one, not {len(models)}; leave them "
            f"out, or name one --alpha and one --resolution"
        )
    if options.lib is not None:
        models = [pipeline.network_in(options.lib, network_of(options))]
    target, log, site = place_of(options, measures=True)
    results = []
    for model in models:
        result = pipeline.bench(
            model,
            target,
            log,
            site=site,
            weights=options.weights,
            seed=options.seed,
            library=options.lib,
            peers=options.peers,
            rounds=options.rounds,
            progress=_tell,
        )
        print(comparison_table(result) if "floor_s" in result else tally_table(result), flush=True)
        results.append(result)
    if len(models) > 1:
        print(f"\n{comparisons_table(results)}")
    write_json(options, results if len(models) > 1 else results[0])


def profile(options: argparse.Namespace) -> None:
    from tune import pipeline
    from tune.report.profile import profile_table

    model = model_of(options)
    if options.lib is not None:
        if options.weights is not None:
            raise UsageError(
                f"--weights {options.weights} would go into a library, and --lib {options.lib} is "
                f"one; expected either; leave one out"
            )
        model = pipeline.network_in(options.lib, network_of(options))
        options.threads = options.threads or pipeline.threads_in(options.lib)
    target, log, site = place_of(options, measures=True)
    result = pipeline.profile(
        model,
        target,
        log,
        site=site,
        weights=options.weights,
        seed=options.seed,
        library=options.lib,
        rounds=options.rounds,
        progress=_tell,
    )
    print(profile_table(result))
    write_json(options, result)


def verify(options: argparse.Namespace) -> None:
    from tune import pipeline
    from tune.report.files import verification_table

    model = model_of(options)
    target, log, site = place_of(options, measures=True)
    result = pipeline.verify(
        model, target, log, site=site, tolerance=options.tolerance, progress=_tell
    )
    print(verification_table(result))
    write_json(options, result)
    if failure := pipeline.failures(result):
        raise failure


def package(options: argparse.Namespace) -> None:
    from tune import pipeline
    from tune.report.files import package_table

    if options.lib is not None:
        made = pipeline.package(options.lib, options.target, options.output, progress=_tell)
    else:
        model = model_of(options)
        target, log, site = place_of(options)
        made = pipeline.build_package(
            model,
            target,
            log,
            threads=site.threads,
            weights=options.weights,
            seed=options.seed,
            folder=options.output,
            progress=_tell,
        )
    print(package_table(made))
    print(f"folder: {options.output}")
    write_json(options, made)


def harvest(options: argparse.Namespace) -> None:
    from tune import pipeline
    from tune.report.harvest import summary

    results = pipeline.harvest(
        target_of(options),
        options.output,
        budget_s=options.budget,
        limit_s=options.limit,
        only=options.only,
        kernels=options.kernel,
        seed=options.seed,
        progress=_tell,
    )
    text = summary(results)
    (options.output / "summary.md").write_text(text)
    print(text)
    print(f"folder: {options.output}")
    problems = [name for name, why in results["state"]["ended"].items() if why is not None]
    if problems or results.get("correctness", {}).get("failed"):
        what = ", ".join(problems) or "correctness"
        raise GateError(f"{what} failed; expected every step to work; see {options.output}")


def show_model(options: argparse.Namespace) -> None:
    from tune.report import model_table

    print(model_table(model_of(options)))


def roofline(options: argparse.Namespace) -> None:
    from tune import pipeline
    from tune.report import roofline_table

    target = target_of(options)
    if target.kind != "cuda":
        return _scaling(options, target)
    for name in ("threads", "memory", "probe"):
        if getattr(options, name):
            raise UsageError(
                f"--{name} is of a CPU's cores, and {target.device} is a GPU; expected --threads, "
                f"--memory and --probe of a CPU alone; leave it out, or pass --target x86"
            )
    result = pipeline.roofline(model_of(options), target, pipeline.Log.at(options.log, target))
    print(roofline_table(result))
    write_json(options, result)


def _scaling(options: argparse.Namespace, target: Target) -> None:
    from tune import pipeline
    from tune.report.scaling import scaling_table

    result = pipeline.scaling(
        model_of(options),
        target,
        pipeline.Log.at(options.log, target),
        **({} if options.threads is None else {"threads": options.threads}),
        memory_bytes_per_s=options.memory,
        probe=options.probe,
    )
    print(scaling_table(result))
    write_json(options, result)


def doctor(options: argparse.Namespace) -> None:
    from tune.doctor import examine
    from tune.report import findings_table

    findings = examine()
    print(findings_table(findings))
    lacking = [finding for finding in findings if finding.needed and finding.found is None]
    if lacking:
        raise SetupError(f"{lacking[0].what}: {lacking[0].remedy}")


def list_targets(options: argparse.Namespace) -> None:
    from targets import machines
    from tune.report import devices_table

    print(devices_table([d for kind in TARGETS for d in machines(kind).DEVICES.values()]))


def board(options: argparse.Namespace) -> None:
    from tune import board as boards

    match options.action:
        case "start":
            state = boards.start(options.port, _tell)
        case "stop":
            state = boards.stop(options.port)
        case _:
            state = boards.status(options.port)
    print(f"board at {state.address}: {'off' if state.pid is None else f'on, process {state.pid}'}")
    if state.pid is not None:
        print(f"log: {state.log}")


def _tell(line: str) -> None:
    print(line, file=sys.stderr)
