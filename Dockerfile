# docs/docker.md says how to build and run this image, and what of it is tested.
#
# CUDA's minor version is the one that PyTorch's wheels in constraints.txt are built for. The wheels bring their own CUDA
# libraries and NCCL; "devel" is for nvcc and g++, with which DeepSpeed builds its operations at their first use.
FROM nvidia/cuda:13.0.2-devel-ubuntu24.04

# Triton (compile, FlexAttention) builds small C modules, hence Python's headers.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# Any user may run the image (docker run --user): home, caches and the working directory are open to all.
RUN useradd --uid 10001 --create-home txtrain \
    && chmod 1777 /home/txtrain \
    && install --directory --mode=1777 /workspace

ENV PATH=/opt/txtrain/venv/bin:$PATH \
    HOME=/home/txtrain \
    USER=txtrain \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_CONSTRAINT=/opt/txtrain/constraints.txt \
    PIP_BUILD_CONSTRAINT=/opt/txtrain/constraints.txt

# The packages come before the code, so that a change of code does not install them again.
WORKDIR /opt/txtrain
COPY constraints.txt ./
RUN python3 -m venv venv \
    && pip install torch \
    && pip install lightning hydra-core datasets tokenizers wandb tensorboard deepspeed ninja

COPY pyproject.toml README.md LICENSE ./
COPY txtrain ./txtrain
COPY conf ./conf
COPY hydra_plugins ./hydra_plugins
RUN pip install ".[tasks,optuna]"

USER txtrain
WORKDIR /workspace
ENTRYPOINT ["txtrain", "train"]
