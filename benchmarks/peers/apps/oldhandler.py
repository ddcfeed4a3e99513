"""The old handler: langchain_community's ContextCallbackHandler, on the model, as its chat example has it.

On a whole `prompt | model | parser` it records nothing: it looks for `outputs["text"]`, which LLMChain had. It has no
setting for another server and its client refuses plain HTTP, so its client is exchanged for one that differs in that.
"""

from __future__ import annotations


def asking(chain, url):
    """The chain, recorded: what takes a question and gives the answer."""
    from azure.core.credentials import AzureKeyCredential  # noqa: PLC0415
    from azure.core.pipeline.policies import AzureKeyCredentialPolicy  # noqa: PLC0415
    from getcontext import ContextAPI  # noqa: PLC0415
    from getcontext.token import Credential  # noqa: PLC0415
    from langchain_community.callbacks import ContextCallbackHandler  # noqa: PLC0415

    handler = ContextCallbackHandler(token="t")
    bearer = AzureKeyCredentialPolicy(AzureKeyCredential("t"), "Authorization", prefix="Bearer")
    handler.client = ContextAPI(Credential("t"), endpoint=url, authentication_policy=bearer)
    chain.middle[0].callbacks = [handler]
    return chain.invoke


def flush() -> None:
    """Nothing waits: it delivers before the call returns, or never."""
