"""FastAPI with OpenVINO. A peer of bench/serving.py."""

import asyncio
from typing import Any

import fastapi
import uvicorn
import work

options = work.options()
network = work.Network(options.model, options.precision, options.mode)
pool = network.pool()
app = fastapi.FastAPI()


@app.get("/ready")
def ready() -> bool:
    return True


@app.post("/predict")
async def predict(request: fastapi.Request) -> dict[str, Any]:
    body, kind = await request.body(), request.headers["content-type"]
    return await asyncio.get_running_loop().run_in_executor(pool, network.answer, body, kind)


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=options.port, access_log=False, log_level="warning")
