"""The commands about files: recordings and models one by one, and the page."""

import os
import sys
from pathlib import Path

from anyecg.loaders.errors import AnyECGError


def add_commands(commands):
    """Add import-weights, export, inspect, convert and serve to the subparsers."""
    weights = commands.add_parser("import-weights")
    weights.set_defaults(work=_import_weights)
    weights.add_argument("published", type=Path, help="file (.pth) that ECGFounder publishes")
    weights.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    weights.add_argument("--targets", type=int, help="outputs of a fresh head (default: the published head)")
    export = commands.add_parser("export")
    export.set_defaults(work=_export)
    export.add_argument("model", type=Path, help="folder of a finished model")
    export.add_argument("--format", required=True, choices=("ecgfounder", "safetensors", "onnx"), help="form to write")
    export.add_argument("--out", type=Path, required=True, help="file to write (.pth, .safetensors, .onnx)")
    _add_recordings(commands)
    page = commands.add_parser("serve")
    page.set_defaults(work=_serve)
    page.add_argument("--port", type=int, default=0, help="port of 127.0.0.1 (default: any free one)")
    page.add_argument("--no-browser", action="store_true", help="print the address, and open nothing")
    page.add_argument("--folder", type=Path, help="recordings to show from the start")
    page.add_argument("--runs", type=Path, default=Path("runs"), help="folder of runs, to choose their models (runs)")
    page.add_argument("--upload-mb", type=int, default=4096, help="most that all uploads may hold together (4096)")


def _add_recordings(commands):
    inspect = commands.add_parser("inspect")
    inspect.set_defaults(work=_inspect)
    inspect.add_argument("file", type=Path, help="a recording of any format")
    inspect.add_argument("--json", action="store_true", help="print it as JSON, without picture")
    inspect.add_argument("--png", type=Path, help="picture to write: 25 mm/s, 10 mm/mV")
    inspect.add_argument("--start", type=float, default=0.0, help="where the picture begins, in s (0)")
    inspect.add_argument("--seconds", type=float, default=10.0, help="how much it shows (10)")
    convert = commands.add_parser("convert")
    convert.set_defaults(work=_convert)
    convert.add_argument("file", type=Path, help="a recording of any format")
    convert.add_argument("out", type=Path, help="file to write")
    convert.add_argument("--format", required=True, choices=("wfdb", "edf", "hdf5", "csv"), help="form to write")
    for command in (inspect, convert):
        command.add_argument("--leads", help="some leads, as in I,II,V1 (all)")
        command.add_argument("--patient", action="store_true", help="with the patient fields that the file holds")
        _add_plain(command)


def add_of_models(command):
    """Add what predict takes beside a model."""
    command.add_argument(
        "--missing-leads", choices=("quarantine", "zeros"), default="quarantine",
        help="of a record that lacks some of the model's leads: no scores (default), or zeros for those leads",
    )  # fmt: skip
    _add_plain(command)


def _add_plain(command):
    """Add what the user may say of files of plain numbers."""
    command.add_argument("--fs", type=float, help="sampling rate in Hz of a file that does not say it")
    command.add_argument("--unit", help="unit of a file that does not say it: nV, uV, mV, V")
    command.add_argument("--delimiter", help="between the columns of a text, where it cannot be seen")
    command.add_argument("--decimal", choices=(".", ","), help="decimal mark of a text, where it cannot be seen")
    command.add_argument("--header", choices=("yes", "no"), help="whether a first line of text names the columns")
    command.add_argument("--names", help="names of the leads of a file that does not name them, as in I,II,V1")


def predict_from_files(arguments):
    """Score recordings with a model, without a config."""
    from anyecg.loaders.lead_names import plain_options
    from anyecg.train.predict_files import predict_files

    if arguments.config or not (arguments.model and arguments.input and arguments.out):
        raise AnyECGError("predict wants either a config, or all of --model, --input and --out")
    options = plain_options(**_said(arguments))
    n_records, n_bad = predict_files(
        arguments.model, arguments.input, arguments.out, zeros=arguments.missing_leads == "zeros", **options
    )
    lacking = f"; see {arguments.out}.quarantine.csv" if n_bad else ""
    print(f"{arguments.out}: {n_records} records, {n_bad} of them unreadable{lacking}")
    return 0


def _import_weights(arguments):
    from anyecg.train.weights import import_weights

    found = import_weights(arguments.published, arguments.out, n_targets=arguments.targets)
    print(f"{arguments.out}: " + ", ".join(f"{key} {value}" for key, value in found.items()))
    return 0


def _export(arguments):
    from anyecg.train.export import export_model

    n_bytes = export_model(arguments.model, arguments.format, arguments.out)
    beside = f"; its card, to read: {arguments.out}.json" if arguments.format == "onnx" else ""
    print(f"{arguments.out}: {n_bytes / 1e6:.1f} MB{beside}")
    return 0


def _said(arguments):
    """Return what the user says of a file of plain numbers, as options of ``open_record``."""
    names = arguments.names.split(",") if arguments.names else None
    delimiter = "\t" if arguments.delimiter == "\\t" else arguments.delimiter
    header = {"yes": True, "no": False}.get(arguments.header)
    return {"fs": arguments.fs, "unit": arguments.unit, "delimiter": delimiter, "decimal": arguments.decimal,
            "header": header, "leads": names}  # fmt: skip


def _inspect(arguments):
    from anyecg.app.inspect import inspect_file

    leads = arguments.leads.split(",") if arguments.leads else None
    shown = {"as_json": arguments.json, "png": arguments.png, "start": arguments.start, "seconds": arguments.seconds}
    text = inspect_file(arguments.file, **shown, chosen=leads, with_patient=arguments.patient, **_said(arguments))
    # Dots of braille are not in every encoding; and a reader such as head may go before the end.
    encoding = sys.stdout.encoding
    try:
        print(text.encode(encoding, "replace").decode(encoding), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _convert(arguments):
    from anyecg.app.convert import convert

    chosen = arguments.leads.split(",") if arguments.leads else None
    options = {"with_patient": arguments.patient, "chosen": chosen, **_said(arguments)}
    for note in convert(arguments.file, arguments.out, arguments.format, **options):
        print(f"{arguments.out}: {note}")
    print(f"{arguments.out}: written")
    return 0


def _serve(arguments):
    from anyecg.app.serve import serve

    browser = not arguments.no_browser
    return serve(
        port=arguments.port, browser=browser, folder=arguments.folder, runs=arguments.runs,
        upload_mb=arguments.upload_mb,
    )  # fmt: skip
