# A machine that has nothing: `docker build -t mixer-search . && docker run --rm mixer-search` does what `make run` does.
FROM python:3.11-slim

# gcc compiles the CPU operators at their first use.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /mixer-search
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY searchspace searchspace
COPY supernet supernet
COPY search search
COPY configs configs
RUN pip install --no-cache-dir -c constraints.txt .

# Runs go to a folder that can be mounted: docker run -v "$PWD/runs:/runs" ...
WORKDIR /runs
ENTRYPOINT ["search"]
CMD ["run", "--budget", "10cpu-minutes"]
