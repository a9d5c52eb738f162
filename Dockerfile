# A server of the small model, without JAX. For another, copy a file that export.py wrote, and name it behind the image.
#   docker build -t edge-conformer .
#   docker run -p 6006:6006 edge-conformer
FROM python:3.12-slim

WORKDIR /app
COPY requirements.lock .
RUN pip install --no-cache-dir -c requirements.lock \
      absl-py numpy onnxruntime sentencepiece soundfile soxr websockets
COPY conformer conformer
COPY kernels kernels
COPY serve.py transcribe.py ./
COPY models/words_micro models/words_micro
RUN useradd --system recogniser
USER recogniser
EXPOSE 6006
ENTRYPOINT ["python", "serve.py", "--host=0.0.0.0"]
CMD ["--artefact=models/words_micro/onnx_int8.onnx"]
