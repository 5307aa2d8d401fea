# For machines with an NVIDIA GPU: this checkout and the packages of requirements/cuda.lock, which
# bring CUDA along. The host needs a driver and the NVIDIA container toolkit.
#
#   docker build -t mos .
#   docker run --rm --gpus all --ipc=host -v "$PWD/outputs:/mos/outputs" \
#       -v "$PWD/data:/mos/data" mos train +experiment=superni_mmlu
#
# The mounted data folder keeps the samples, the corpora that the scripts prepare, and the caches:
#
#   docker run --rm -v "$PWD/data:/mos/data" --entrypoint python mos scripts/prepare_train_data.py
FROM python:3.11-slim-bookworm

# Triton compiles kernels when they are first used; bubblewrap isolates HumanEval's programs.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential bubblewrap git \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /mos
ENV PATH=/mos/.venv/bin:$PATH UV_NO_CACHE=1 PIP_NO_CACHE_DIR=1

# The packages are a layer of their own, which a change of the code does not touch.
COPY pyproject.toml README.md LICENSE ./
COPY requirements requirements
COPY scripts/setup.py scripts/
RUN python scripts/setup.py cuda

COPY . .

ENTRYPOINT ["mos"]
