#!/bin/sh
# Asks a guarded proxy about a image, with nothing but curl:  ask.sh [IMAGE] [MODEL] [PROXY]
set -eu
image=${1:-examples/images/coffee_and_pistol.jpg}
model=${2:-gpt-4o}
proxy=${3:-http://127.0.0.1:4000}

curl -sS -i "$proxy/v1/chat/completions" \
  -H "Authorization: Bearer $LITELLM_MASTER_KEY" \
  -H "Content-Type: application/json" \
  -d @- <<JSON
{"model": "$model", "messages": [{"role": "user", "content": [
  {"type": "text", "text": "What is in this image?"},
  {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,$(base64 <"$image" | tr -d '\n')"}}
]}]}
JSON
