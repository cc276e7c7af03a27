"""Package the library; trainers/, datasets/ and configs/ are installed inside `unskew`."""

from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).resolve().parent
INSIDE = {f"unskew.{folder}": folder for folder in ("trainers", "datasets", "configs")}
version = next(
    line.split('"')[1] for line in (here / "unskew" / "__init__.py").read_text().splitlines() if "__version__" in line
)

setup(
    name="unskew",
    version=version,
    description="Estimate and remove the class bias that a foundation model shows on your data",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The unskew authors",
    license_expression="MIT AND CC-BY-4.0 AND CC-BY-SA-4.0 AND Unicode-3.0",  # the pictures of emoji have their own
    license_files=["LICENSE", "unskew/micro/pictures/NOTICE"],
    keywords=[
        *("backdoor adjustment", "calibration", "CLIP", "debiasing", "few-shot learning", "foundation models"),
        *("label bias", "logit adjustment", "long-tailed recognition", "prompt learning", "vision-language models"),
    ],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        *(f"Programming Language :: Python :: 3{minor}" for minor in ("", ".10", ".11", ".12", ".13", ".14")),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=find_packages(include=["unskew", "unskew.*"]) + list(INSIDE),
    package_dir=INSIDE,
    package_data={
        "unskew": ["py.typed", "*.pyi", "*/*.pyi"],
        "unskew.configs": ["*.yaml", "*/*.yaml"],
        "unskew.micro": ["models/*", "pictures/*"],
        "unskew.runs.report": ["*.html", "*.css", "*.js"],
    },
    install_requires=[
        "accelerate>=1.0",
        "filelock",
        "gdown>=6.3",
        "jinja2",
        "lazy_loader>=0.4",
        "matplotlib",
        "numpy",
        "open_clip_torch>=3.0",
        "pandas",
        "pillow>=10.1",
        "PyYAML",
        "requests",
        "safetensors",
        "scikit-learn",
        "scipy>=1.11",
        "tabulate",
        "tensorboard",
        "torch>=2.6",
        "torchvision",
        "tqdm",
        "yacs",
    ],
    extras_require={
        "emoji": ["resvg-py"],
        "docs": ["latex2mathml", "mkdocs-material>=9.6", "mkdocstrings[python]", "ruff"],
        "export": ["onnx", "onnxruntime", "onnxscript"],
        "import": ["datasets>=4.0", "pyarrow"],  # older versions of datasets run the code of a dataset
        "ray": ["ray"],
        "slurm": ["submitit"],
        "transport": ["POT"],
        "test": [
            "POT",
            "build",
            "datasets>=4.0",
            "latex2mathml",
            "mkdocs-material>=9.6",
            "mkdocstrings[python]",
            "mypy",
            "onnx",
            "onnxruntime",
            "onnxscript",
            "playwright",
            "pyarrow",
            "pytest",
            "pytest-xdist",
            "ray",
            "resvg-py",
            "ruff",
            "setuptools>=77",
            "submitit",
            "torchmetrics",
            "transformers",
            "twine",
            "types-PyYAML",
            "types-requests",
            "types-tabulate",
            "types-tqdm",
        ],
    },
    entry_points={"console_scripts": ["unskew = unskew.cli.main:main"]},
)
