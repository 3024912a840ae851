"""Map the rooms at the top of the repository into the namespace package ``anyecg``."""

from pathlib import Path

from setuptools import setup

ROOMS = ("kernels", "loaders", "train", "slurm", "app")

setup(
    name="anyecg-lab",
    version="0.1.0",
    description="Hospital ECG waveforms to laboratory estimates, from a laptop to a cluster",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=[f"anyecg.{room}" for room in ROOMS],
    package_dir={f"anyecg.{room}": room for room in ROOMS},
    package_data={
        "anyecg.loaders": ["targets108.csv"],
        "anyecg.slurm": ["configs/*.toml"],
        "anyecg.app": [
            "page.css",
            "profile.html.j2",
            "report.css",
            "report.html.j2",
            "report.js",
            "demo/*.toml",
            "demo/*.csv",
            "demo/*.md",
            "demo/records/*.hea",
            "demo/records/*.mat",
            "cinc2017/*.toml",
            "cinc2017/*.csv",
            "cinc2017/*.md",
            "cinc2017/model/*",
        ],
    },
    install_requires=[
        "deepspeed>=0.19.8,<0.20",
        "h5py>=3.12",
        "jinja2>=3.1",
        "matplotlib>=3.9",
        "mpi4py>=4.0",
        "psutil>=5.9",
        "mpich>=4.2",
        "numba>=0.61",
        "numpy>=2.0",
        "onnx>=1.18",
        "onnxruntime>=1.20",
        "onnxscript>=0.5",
        "polars>=1.20",
        "pyarrow>=18",
        "pydantic>=2.10",
        "safetensors>=0.5",
        "scikit-learn>=1.5",
        "scipy>=1.14",
        "threadpoolctl>=3.1",
        "tomli-w>=1.1",
        "tensorboardX>=2.6.2",
        "torch>=2.6",
        "tqdm>=4.66",
        "wfdb>=4.1.2,<5",
        "zlib-ng>=0.5",
    ],
    extras_require={
        # One machine takes one of the two DALI builds, by the CUDA version of its driver; both also run without a GPU.
        "cuda130": ["nvidia-dali-cuda130>=2.0"],
        "cuda120": ["nvidia-dali-cuda120>=1.45"],
        # Shards with shard.filter = "bitshuffle-lz4".
        "lz4": ["hdf5plugin>=4.4"],
        "dev": [
            "hdf5plugin>=4.4",
            "hypothesis>=6.100",
            "mypy>=1.13",
            "pip-audit>=2.7",
            "playwright>=1.50",
            "pytest>=8.3",
            "pytest-xdist>=3.6",
            "ruff>=0.8",
            "setuptools>=77",
        ],
    },
    entry_points={"console_scripts": ["anyecg=anyecg.app.cli:main"]},
)
