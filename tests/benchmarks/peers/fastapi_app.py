"""FastAPI on uvicorn with uvloop and httptools, the model called in the handler: one process, one thread, one core."""

from __future__ import annotations

import sys

import uvicorn
from fastapi import FastAPI, Request
from model import Classifier

app = FastAPI()
classifier = Classifier()


@app.post("/classify")
async def classify(request: Request) -> object:
    sent = await request.json()
    if "text" in sent:
        return classifier.one(sent["text"])
    return {"results": [classifier.one(text) for text in sent["texts"]]}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
