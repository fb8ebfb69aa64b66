"""The page `/gpuflow` of Dask's dashboard: that it is there, or a line that says why not.

Nothing here may keep a scheduler from starting: without Bokeh, or with the dashboard switched off, `/gpuflow` answers with that line."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from tornado import web
from tornado.ioloop import IOLoop

if TYPE_CHECKING:
    from gpuflow.cluster.scheduler_plugin import GpuflowPlugin

logger = logging.getLogger(__name__)

NAME = "gpuflow"
_OFF = "Dask's dashboard is off here; start the scheduler with --dashboard-address :8787 (gpuflow scheduler --dashboard :8787)"
_NO_BOKEH = (
    "the page /gpuflow needs bokeh, which is not installed: pip install 'gpuflow[dashboard]', and start the scheduler again"
)


class _Absent(web.RequestHandler):
    """Says why there is no page."""

    def initialize(self, why: str) -> None:
        self.why = why

    def get(self) -> None:
        self.set_status(404)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.write(f"{self.why}\n")


def install(plugin: GpuflowPlugin) -> str:
    """Add the page to the scheduler's HTTP server. "" when it is there, else why not, which is logged once."""
    application = getattr(plugin.scheduler, "http_application", None)
    if application is None:
        return "the scheduler has no HTTP server"
    why = _why_not(application)
    if not why:
        try:
            _add(plugin, application)
            return ""
        except Exception as error:
            logger.exception("the page /%s of the dashboard cannot be made", NAME)
            why = f"the page /{NAME} cannot be made ({type(error).__name__}: {error}); the scheduler's log says more"
    elif why == _NO_BOKEH:
        logger.warning(why)
    else:
        logger.info(why)
    application.add_handlers(".*$", [(rf"(?:/.+)?/{NAME}/?", _Absent, {"why": why})])
    return why


def _why_not(application: Any) -> str:
    if _bokeh_of(application) is not None:
        return ""
    from distributed.http.scheduler.missing_bokeh import MissingBokeh

    rules = [rule for host in application.default_router.rules for rule in getattr(host.target, "rules", ())]
    return _NO_BOKEH if any(rule.target is MissingBokeh for rule in rules) else _OFF


def _bokeh_of(application: Any) -> Any:
    """The dashboard among the scheduler's applications: what has pages of Bokeh."""
    return next((one for one in application.applications if hasattr(one, "app_paths")), None)


def _add(plugin: GpuflowPlugin, application: Any) -> None:
    """As Dask adds its own pages, with a link to it on all of them."""
    from distributed.dashboard.core import BokehApplication
    from distributed.dashboard.scheduler import template_variables

    from gpuflow.cluster.dashboard_page import page

    scheduler = plugin.scheduler
    variables = template_variables(scheduler)
    if NAME not in variables["pages"]:
        variables["pages"].append(NAME)
    prefix = _bokeh_of(application).prefix
    pages = BokehApplication({f"/{NAME}": partial(page, plugin)}, scheduler, prefix=prefix, template_variables=variables)
    application.add_application(pages)
    pages.initialize(IOLoop.current())
    pages.start()
