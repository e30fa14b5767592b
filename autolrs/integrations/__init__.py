"""Parts of autolrs for other libraries. Each module needs the library that it is named after."""
