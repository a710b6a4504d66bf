'use strict';
// A heading sorts the rows: numbers by size with the largest first, texts by letter; once more turns the order round.
for (const [column, head] of [...document.querySelectorAll('#table thead th')].entries()) {
  head.querySelector('button').addEventListener('click', () => {
    const body = document.querySelector('#table tbody');
    const rows = [...body.rows].map((row) => [row.cells[column].dataset.value, row]);
    const numeric = rows.every(([text]) => text === '' || Number.isFinite(Number(text)));
    const now = head.getAttribute('aria-sort');
    const ascending = now ? now === 'descending' : !numeric;
    const compare = numeric ? (a, b) => Number(a) - Number(b) : (a, b) => a.localeCompare(b);
    rows.sort(([a], [b]) => {
      if (a === '' || b === '') return (a === '') - (b === '');
      return ascending ? compare(a, b) : compare(b, a);
    });
    for (const other of document.querySelectorAll('#table thead th')) other.removeAttribute('aria-sort');
    head.setAttribute('aria-sort', ascending ? 'ascending' : 'descending');
    body.append(...rows.map(([, row]) => row));
  });
}
document.documentElement.dataset.ready = 'yes';
