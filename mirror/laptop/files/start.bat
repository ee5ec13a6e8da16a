@echo off
rem Serves the images of the bundles in this folder. Written by mirror export --laptop.
setlocal
set "python="
py -3 -c "import sys; sys.exit(sys.version_info < (3, 8))" >nul 2>nul && set "python=py -3"
if not defined python python -c "import sys; sys.exit(sys.version_info < (3, 8))" >nul 2>nul && set "python=python"
if not defined python (
    echo Python 3.8 or newer is needed, and was not found: install it from python.org.
    pause
    exit /b 1
)
%python% -I "%~dp0mirror.pyz" %*
pause
