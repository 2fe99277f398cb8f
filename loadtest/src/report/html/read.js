'use strict';
// Shows what a chart's series are where the pointer is. All text is set as text: none of it is ever read as HTML.
for (const figure of document.querySelectorAll('figure[data-read]')) {
  const { series, rows } = JSON.parse(figure.dataset.read);
  const box = document.createElement('div');
  box.className = 'read';
  box.hidden = true;
  figure.append(box);
  for (const svg of figure.querySelectorAll('svg')) {
    const [left, top, width, height] = svg.dataset.plot.split(' ').map(Number);
    const group = document.createElementNS(svg.namespaceURI, 'g');
    svg.append(group);
    const add = (name, attributes) => {
      const element = document.createElementNS(svg.namespaceURI, name);
      for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
      group.append(element);
    };
    const hide = () => { box.hidden = true; group.replaceChildren(); };
    svg.addEventListener('pointerleave', hide);
    svg.addEventListener('pointermove', (event) => {
      hide();
      const frame = svg.getBoundingClientRect();
      const scale = frame.width / svg.viewBox.baseVal.width;
      const part = ((event.clientX - frame.left) / scale - left) / width;
      if (!rows.length || part < -0.03 || part > 1.03) return;
      const row = rows.reduce((best, row) => Math.abs(row[0] - part) < Math.abs(best[0] - part) ? row : best);
      const x = left + row[0] * width;
      add('path', { class: 'cursor', d: `M${x} ${top}v${height}` });
      const title = document.createElement('b');
      title.textContent = row[2].some(Boolean) ? row[1] : `${row[1]}: nothing`;
      box.replaceChildren(title);
      row[2].forEach((cell, index) => {
        if (!cell) return;
        const [name, words] = series[index];
        if (name !== 'mark') add('circle', { class: `dot ${name}`, cx: x, cy: top + cell[0] * height, r: 4 });
        const line = document.createElement('div');
        const key = document.createElement('span');
        const swatch = document.createElement('i');
        swatch.className = name;
        key.append(swatch, words);
        const value = document.createElement('span');
        value.textContent = cell[1];
        line.append(key, value);
        box.append(line);
      });
      box.hidden = false;
      const outer = figure.getBoundingClientRect();
      const place = frame.left - outer.left + x * scale;
      box.style.left = `${place + box.offsetWidth + 14 > outer.width ? Math.max(0, place - box.offsetWidth - 12) : place + 12}px`;
      box.style.top = `${frame.top - outer.top + (top + 6) * scale}px`;
    });
  }
}
