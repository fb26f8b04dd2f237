"""The console script: the Ray-free command line, and the commands that host a mesh on Ray."""

from actors.drain import drain
from actors.status import status
from actors.up import down, start_mesh, up
from runtime.cli.app import app
from runtime.cli.face import RUN, Surroundings

app.command(rich_help_panel=RUN)(up)
app.command(rich_help_panel=RUN)(down)
app.command(rich_help_panel=RUN)(status)
app.command(rich_help_panel=RUN)(drain)


def main() -> None:
    app(obj=Surroundings(start_mesh=start_mesh))


if __name__ == "__main__":
    main()
