"""What programs configure of the web application that KServe's server has: the origins of CORS."""

from __future__ import annotations

from collections.abc import Sequence


class App:
    """Stands for KServe's application; only `add_middleware(CORSMiddleware, ...)` has a meaning here."""

    def __init__(self) -> None:
        self.cors_origins: tuple[str, ...] = ()

    def add_middleware(
        self,
        middleware_class: type,
        *,
        allow_origins: Sequence[str] = (),
        allow_methods: Sequence[str] = ("GET",),  # noqa: ARG002 - all methods that there are
        allow_headers: Sequence[str] = (),  # noqa: ARG002 - all that a page requests
        allow_credentials: bool = False,  # noqa: ARG002 - keys travel in headers, and there are no cookies
        **options: object,
    ) -> None:
        """Allow the pages of these origins, as `ModelServer(cors={"origins": [...]})` does.

        Raises:
            TypeError: it is another middleware, or has another option.
        """
        if middleware_class.__name__ != "CORSMiddleware":
            raise TypeError(f"{middleware_class.__name__} is no middleware of this server; only CORSMiddleware is")
        if options:
            raise TypeError(f"CORSMiddleware: {', '.join(options)} cannot be set here; set allow_origins alone")
        self.cors_origins = tuple(allow_origins)


app = App()
"""The application of this program's server."""
