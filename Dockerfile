# The image of every pod in rayjob.yaml: Ray's, without CUDA, and the package. PyTorch's wheel brings its own CUDA.
#
#   docker build -t REGISTRY/network-surgery:latest . && docker push REGISTRY/network-surgery:latest
FROM rayproject/ray:2.60.0-py311-cpu
COPY --chown=ray . /home/ray/network-surgery
RUN pip install --quiet "ray[default,tune]==$(python -c 'import ray; print(ray.__version__)')" /home/ray/network-surgery
